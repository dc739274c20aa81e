"""Atomic files: a file is complete or absent, and a killed process leaves only temporaries.

A temporary is `.tmp-<host>-<pid>-<8 hex>-<name>`, in the folder of the file that it becomes.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TEMPORARY = re.compile(r"\.tmp-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}-(?P<name>.+)", re.DOTALL)


def process_name() -> str:
    """A name that no other process uses: host, process and eight random digits."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def is_alive(host: str, pid: str) -> bool | None:
    """Whether a process of this machine runs; None for other machines."""
    return Path(f"/proc/{pid}").exists() if host == socket.gethostname() else None


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` if the block succeeds and is removed if it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{process_name()}-{path.name[-32:]}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def copy_whole(source: Path, target: Path, sha256: str | None = None) -> None:
    """Copy a file, atomically. Raises OSError, also where the copy has another hash."""
    with written_whole(target) as temporary:
        shutil.copyfile(source, temporary)
        if sha256 is not None and sha256_of(temporary) != sha256:
            raise OSError(f"{source} changed while it was copied; type the same command again")


def write_json(path: Path, value: Any, before: Callable[[], None] | None = None) -> None:
    """Write JSON atomically; before: called just before the rename. Raises ValueError for NaN."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        if before is not None:
            before()


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none that can be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def without_nan(value: Any) -> Any:
    """A copy of nested dicts and lists with None for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256_of(path: Path) -> str:
    """Hash of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def scan(folder: Path) -> Iterator[os.DirEntry]:
    """The entries of a folder, temporaries too; none where there is no folder."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        yield from entries


def remove_dead_temporaries(folder: Path, before: Callable[[Path], None] | None = None) -> None:
    """Remove the temporaries of dead processes of this machine from a run's folder.

    before: called with each of them first; it may move the file to its place.
    """
    subfolders = [Path(e.path) for e in scan(folder) if e.is_dir(follow_symlinks=False)]
    for path in [Path(e.path) for place in (folder, *subfolders) for e in scan(place)]:
        match = TEMPORARY.fullmatch(path.name)
        if match and is_alive(match["host"], match["pid"]) is False:
            with contextlib.suppress(OSError):
                if before is not None:
                    before(path)
            path.unlink(missing_ok=True)
