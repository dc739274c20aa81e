"""Atomic files: a file is complete or absent, and a killed process leaves only temporaries.

A temporary is `.tmp-<host>-<pid>-<8 hex>-<name>`, in the folder of the file that it becomes.
"""

import contextlib
import hashlib
import json
import math
import os
import re
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
    temporary = path.with_name(f".tmp-{process_name()}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. Raises ValueError for NaN."""
    text = json_text(value)
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(value: Any) -> str:
    """The JSON of a file of the store. Raises ValueError for NaN."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


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


def entries(folder: Path) -> dict[str, os.DirEntry]:
    """The entries of a folder by name, temporaries too; empty where there is no folder."""
    return {entry.name: entry for entry in scan(folder)}


def scan(folder: Path) -> Iterator[os.DirEntry]:
    """`entries` one by one, since an entry caches its stat result and that takes memory."""
    try:
        with os.scandir(folder) as iterator:
            yield from iterator
    except (FileNotFoundError, NotADirectoryError):
        return


def names_of(folder: Path, suffix: str) -> list[str]:
    """The names of a folder's files with a suffix, sorted, without temporaries."""
    return sorted(n for n in entries(folder) if n.endswith(suffix) and not n.startswith("."))


def remove_dead_temporaries(folder: Path, before: Callable[[Path], None] | None = None) -> None:
    """Remove the temporaries of dead processes of this machine from a run's folder.

    before: called with each of them first; it may move the file to its place.
    """
    subfolders = [e.path for e in entries(folder).values() if e.is_dir(follow_symlinks=False)]
    for place in (folder, *map(Path, subfolders)):
        for name in entries(place):
            match = TEMPORARY.fullmatch(name)
            if match and is_alive(match["host"], match["pid"]) is False:
                if before is not None:
                    with contextlib.suppress(OSError):
                        before(place / name)
                (place / name).unlink(missing_ok=True)
