"""What is wrong with a store, each with what `gc` would do about it.

A run is a folder below RUNS that has a recipe, records or clips. Looked at is what the store itself
writes there (`KINDS`); other files are nobody's business here. Found are

    records    that are cut off, lack something, or belong to another run or under another name
    clips      that are gone, cut off (size) or altered (sha256), by what their record says
    orphans    videos, sheets, latents, windows without a record
    temporaries of processes that are dead, or of other machines
    failures   of clips that exist by now, or that say nothing
    scores     lines that are no verdict
    recipe     recipe.json that is gone or cut off

A record, or a clip, that is wrong takes the clip's other files with it: the clip is made anew. What a
living process of this machine is writing is no finding. Folders that are links are not entered.
"""

import json
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2flow.errors import UserError
from s2flow.store.files import TEMPORARY, entries, sha256_of
from s2flow.store.records import WHOLE, key_of, read_record
from s2flow.store.scorebook import is_verdict

KEY = r"(?P<key>[0-9a-f]{16})"
KINDS = {  # of a clip; the record is no part of it
    **{"clips": rf"{KEY}(\.low)?\.mp4", "sheets": rf"{KEY}\.png"},
    **{"latents": rf"{KEY}\.safetensors", "windows": rf"{KEY}\.npz"},
}
OTHERS = ("records", "failures", "scores")
CACHE = "lr_cache"  # a folder beside the runs, of which only the temporaries are looked at


@dataclass(frozen=True)
class Finding:
    """Something wrong with a file, and what removes or mends it.

    remove: the files that go, in this order; mend: "scores" or "recipe" to write the file anew
    without what is wrong; unless: a record that must still be missing. as_of: the state of the
    files when they were found.
    """

    path: Path
    what: str
    remove: tuple[Path, ...] = ()
    mend: str = ""
    unless: Path | None = None
    as_of: dict[Path, tuple | None] = field(default_factory=dict)

    @property
    def then(self) -> str:
        """What gc would do."""
        if self.mend:
            return f"gc writes it anew, without what is wrong{self._source}"
        again = len(self.remove) > 1 or "records" in self.path.parts[-2:-1]
        more = "it and the clip's other files; the clip is made anew" if again else "it"
        return f"gc removes {more}"

    @property
    def _source(self) -> str:
        return "" if self.mend == "scores" else " from a record"

    @property
    def files(self) -> tuple[Path, ...]:
        """All that are touched."""
        return self.remove or (self.path,)


def state(path: Path) -> tuple | None:
    """What tells that a file is another one now; None where there is none. Links are not followed."""
    try:
        s = os.lstat(path)
    except OSError:
        return None
    return s.st_mtime_ns, s.st_size, s.st_ino


def run_folders(runs_dir: Path) -> list[Path]:
    """The runs of a store, by name, without those that are links. Raises UserError if it is none."""
    if (runs_dir / "records").is_dir():
        above = runs_dir.resolve().parent
        raise UserError(f"{runs_dir} is a single run; type the folder that holds it: {above}")
    try:
        found = [Path(e.path) for e in os.scandir(runs_dir) if e.is_dir(follow_symlinks=False)]
    except OSError as error:
        raise UserError(f"{runs_dir}: {error.strerror}; type the folder of the runs") from None
    signs = ("recipe.json", "records", "clips")
    return sorted(
        p for p in found if p.name != CACHE and any(os.path.lexists(p / s) for s in signs)
    )


def verify(runs_dir: Path, fast: bool = False) -> Iterator[Finding]:
    """Everything that is wrong, run by run; fast: sizes instead of hashes."""
    for folder in run_folders(runs_dir):
        for finding in _of_run(folder, fast):
            yield _as_found(finding)
    for folder in (runs_dir, runs_dir / CACHE):
        if not folder.is_symlink():
            yield from map(_as_found, _temporaries(folder, entries(folder)))


def _as_found(finding: Finding) -> Finding:
    finding.as_of.update({path: state(path) for path in finding.files})
    return finding


def _of_run(folder: Path, fast: bool) -> Iterator[Finding]:
    real = [k for k in (*KINDS, *OTHERS) if not (folder / k).is_symlink()]
    held = {kind: entries(folder / kind) for kind in real}
    files: dict[str, list[Path]] = {}  # of clips, by key; the video first
    for kind, pattern in KINDS.items():
        for name in sorted(held.get(kind, {}), key=lambda n: (".low." in n, n)):
            if found := re.fullmatch(pattern, name):
                files.setdefault(found["key"], []).append(folder / kind / name)
    sound: dict[str, dict[str, Any]] = {}
    named = set()
    for name in sorted(held.get("records", {})):
        if name.endswith(".json") and not name.startswith("."):
            path, key = folder / "records" / name, name[:-5]
            named.add(key)
            record = read_record(path)
            wrong = _wrong(path, record, folder.name) or fault(folder, record, fast)
            if wrong:
                where, what = wrong
                yield Finding(where, what, (path, *files.get(key, ())))
            else:
                sound[key] = record
    for key in sorted(files.keys() - named):
        record = folder / "records" / f"{key}.json"
        for path in files[key]:
            yield Finding(path, "has no record", (path,), unless=record)
    yield from _failures(folder, held.get("failures", {}), sound)
    yield from _scores(folder, held.get("scores", {}))
    yield from _recipe(folder, sound)
    for kind, found in ({".": entries(folder)} | held).items():
        yield from _temporaries(folder / kind, found)


def _wrong(path: Path, record: dict[str, Any] | None, run_id: str) -> tuple[Path, str] | None:
    """What is wrong with a record as such."""
    if record is None:
        return path, _lacking(path)
    if record["run_id"] != run_id:
        return path, f"is a record of run {record['run_id']!r}"
    key = key_of(record)
    if key != path.stem:
        return path, f"is the record of clip {key} under another name"
    if record["video"] != f"clips/{key}.mp4":
        return path, f"names the video {record['video']!r} and not clips/{key}.mp4"
    return None


def _lacking(path: Path) -> str:
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, RecursionError):
        return "is no JSON: it was cut off or altered"
    if not isinstance(record, dict) or record.get("status") != "ok":
        return "is no record of a finished clip"
    lacks = sorted(k for k, kind in WHOLE.items() if not isinstance(record.get(k), kind))
    return f"is incomplete: {', '.join(lacks)}"


def fault(folder: Path, record: dict[str, Any], fast: bool) -> tuple[Path, str] | None:
    """What is wrong with the video of a sound record."""
    path = folder / record["video"]
    try:
        size = os.stat(path).st_size
        if size != record["bytes"]:
            return path, f"has {size} bytes and its record says {record['bytes']}"
        if not fast and record.get("sha256") and sha256_of(path) != record["sha256"]:
            return path, "is not the file that was recorded: its hash is another"
    except FileNotFoundError:
        return path, "is gone, its record is there"
    except OSError as error:
        return path, f"cannot be read ({error.strerror})"
    return None


def _failures(folder: Path, found: dict, sound: dict) -> Iterator[Finding]:
    for name in sorted(n for n in found if n.endswith(".json") and not n.startswith(".")):
        path = folder / "failures" / name
        if name[:-5] in sound:
            yield Finding(path, "is the failure of a clip that exists", (path,))
        elif not isinstance(_json(path), dict):
            yield Finding(path, "is no JSON: it was cut off or altered", (path,))


def _scores(folder: Path, found: dict) -> Iterator[Finding]:
    for name in sorted(n for n in found if n.endswith(".jsonl") and not n.startswith(".")):
        path = folder / "scores" / name
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError:
            continue
        bad = sum(not is_verdict(line) for line in lines[:-1]) + bool(lines[-1])
        if bad:
            yield Finding(
                path, f"has {bad} broken line(s) of {len(lines) - (not lines[-1])}", mend="scores"
            )


def _recipe(folder: Path, sound: dict) -> Iterator[Finding]:
    path = folder / "recipe.json"
    if isinstance(_json(path), dict):
        return
    there = os.path.lexists(path)
    what = "is no JSON: it was cut off or altered" if there else "is gone"
    if sound:
        yield Finding(path, what, mend="recipe")
    elif there:
        yield Finding(path, what, (path,))


def _temporaries(folder: Path, found: dict) -> Iterator[Finding]:
    here = socket.gethostname()
    for name in sorted(found):
        if not (match := TEMPORARY.fullmatch(name)) or found[name].is_dir(follow_symlinks=False):
            continue
        host, pid = match["host"], match["pid"]
        if host == here and Path(f"/proc/{pid}").exists():
            continue
        where = "here, is no more" if host == here else f"of {host} left it"
        yield Finding(folder / name, f"is a temporary: process {pid} {where}", (folder / name,))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
