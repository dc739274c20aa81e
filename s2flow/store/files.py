"""Files that are there whole or not at all, and what a kill leaves of those that were not.

A temporary is `.tmp-<host>-<pid>-<8 hex>-<name>` beside the file that it becomes.
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


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` if the block succeeds and vanishes if it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary = path.with_name(f".tmp-{unique}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; NaN is refused."""
    text = json_text(value)
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(value: Any) -> str:
    """What files of the store hold. Raises ValueError for NaN."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def without_nan(value: Any) -> Any:
    """The same nest of dicts and lists with None for every NaN and infinity, which JSON lacks."""
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
    """What a folder holds by name, temporaries too; nothing of a folder that is not there."""
    return {entry.name: entry for entry in scan(folder)}


def scan(folder: Path) -> Iterator[os.DirEntry]:
    """`entries` one by one: each remembers its state once asked, and that takes memory."""
    try:
        with os.scandir(folder) as found:
            yield from found
    except (FileNotFoundError, NotADirectoryError):
        return


def remove_temporaries_of_the_dead(
    folder: Path, first: Callable[[Path], None] | None = None
) -> None:
    """Remove what processes of this machine that are no more left in a run's folder.

    first: is shown each of them, and may put it in its place.
    """
    here = socket.gethostname()
    inside = (e.path for e in entries(folder).values() if e.is_dir(follow_symlinks=False))
    for kind in (folder, *map(Path, inside)):
        for name in entries(kind):
            found = TEMPORARY.fullmatch(name)
            if found and found["host"] == here and not Path(f"/proc/{found['pid']}").exists():
                if first is not None:
                    with contextlib.suppress(OSError):
                        first(kind / name)
                (kind / name).unlink(missing_ok=True)
