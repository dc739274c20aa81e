"""What is wrong with a store, each finding with the remedy that `gc` applies.

    records    cut off, incomplete, under the wrong name, of another run
    clips      videos that are missing, cut off (size) or altered (sha256), compared with their record
    orphans    videos, sheets, latents, windows without a record
    temporaries of dead processes, or of other machines
    failures   of clips that exist by now, or that cannot be read
    scores     lines that are no verdict
    recipe     recipe.json that is missing or cut off

A wrong record or clip is removed with the clip's other files, and the clip is then made again. Files
that a living process of this machine is writing are no finding. Linked folders are not entered.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2flow.errors import UserError
from s2flow.store.files import TEMPORARY, entries, is_alive, read_json, sha256_of
from s2flow.store.records import REQUIRED, key_of, read_record
from s2flow.store.scorebook import is_verdict

KEY = r"(?P<key>[0-9a-f]{16})"
KINDS = {  # folders of a clip's files beside the record
    **{"clips": rf"{KEY}(\.low)?\.mp4", "sheets": rf"{KEY}\.png"},
    **{"latents": rf"{KEY}\.safetensors", "windows": rf"{KEY}\.npz"},
}
OTHERS = ("records", "failures", "scores")
CACHE = "lr_cache"  # a folder beside the runs, of which only the temporaries are checked
CUT_OFF = "is no JSON: it was cut off or altered"


@dataclass(frozen=True)
class Finding:
    """A wrong file and its remedy.

    remove: files to remove, in this order; rewrite: "scores" or "recipe" to write `path` again without
    what is wrong; unless: a record that must still be missing; as_of: the state of the files when they
    were checked.
    """

    path: Path
    what: str
    remove: tuple[Path, ...] = ()
    rewrite: str = ""
    unless: Path | None = None
    as_of: dict[Path, tuple | None] = field(default_factory=dict)

    @property
    def remedy(self) -> str:
        """What gc does."""
        if self.rewrite:
            source = "" if self.rewrite == "scores" else " from a record"
            return f"gc writes it again, without what is wrong{source}"
        whole_clip = len(self.remove) > 1 or "records" in self.path.parts[-2:-1]
        more = "it and the clip's other files; the clip is then made again" if whole_clip else "it"
        return f"gc removes {more}"

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the remedy changes."""
        return self.remove or (self.path,)


def state(path: Path) -> tuple | None:
    """Changes whenever the file does; None where there is none. Links are not followed."""
    try:
        s = os.lstat(path)
    except OSError:
        return None
    return s.st_mtime_ns, s.st_size, s.st_ino


def refuse_single_run(runs_dir: Path) -> None:
    """Raises UserError for the folder of one run where a folder of runs is needed."""
    if (runs_dir / "records").is_dir():
        above = runs_dir.resolve().parent
        raise UserError(f"{runs_dir} is a single run; type the folder that holds it: {above}")


def run_folders(runs_dir: Path) -> list[Path]:
    """The run folders of a store, by name, without links. Raises UserError if it is no store."""
    refuse_single_run(runs_dir)
    try:
        folders = [Path(e.path) for e in os.scandir(runs_dir) if e.is_dir(follow_symlinks=False)]
    except OSError as error:
        raise UserError(f"{runs_dir}: {error.strerror}; type the folder of the runs") from None
    signs = ("recipe.json", "records", "clips")
    return sorted(
        p for p in folders if p.name != CACHE and any(os.path.lexists(p / s) for s in signs)
    )


def verify(runs_dir: Path, fast: bool = False) -> Iterator[Finding]:
    """Everything that is wrong, run by run; fast: compare sizes instead of hashes."""
    for finding in _findings(runs_dir, fast):
        finding.as_of.update({path: state(path) for path in finding.files})
        yield finding


def _findings(runs_dir: Path, fast: bool) -> Iterator[Finding]:
    for folder in run_folders(runs_dir):
        yield from _of_run(folder, fast)
    for folder in (runs_dir, runs_dir / CACHE):
        if not folder.is_symlink():
            yield from _temporaries(folder, entries(folder))


def _of_run(folder: Path, fast: bool) -> Iterator[Finding]:
    real = [k for k in (*KINDS, *OTHERS) if not (folder / k).is_symlink()]
    held = {kind: entries(folder / kind) for kind in real}
    files, records = _files_by_key(folder, held), _visible(folder / "records", held, ".json")
    sound: dict[str, dict[str, Any]] = {}
    for path in records:
        record = read_record(path)
        wrong = _wrong(path, record, folder.name) or fault(folder, record, fast)
        if wrong:
            where, what = wrong
            yield Finding(where, what, (path, *files.get(path.stem, ())))
        else:
            sound[path.stem] = record
    for key in sorted(files.keys() - {path.stem for path in records}):
        record = folder / "records" / f"{key}.json"
        for path in files[key]:
            yield Finding(path, "has no record", (path,), unless=record)
    yield from _failures(_visible(folder / "failures", held, ".json"), sound)
    for path in _visible(folder / "scores", held, ".jsonl"):
        yield from _scores(path)
    yield from _recipe(folder / "recipe.json", sound)
    for kind, names in ({".": entries(folder)} | held).items():
        yield from _temporaries(folder / kind, names)


def _files_by_key(folder: Path, held: dict[str, dict]) -> dict[str, list[Path]]:
    """The files of clips without their records, by key; the video first."""
    files: dict[str, list[Path]] = {}
    for kind, pattern in KINDS.items():
        for name in sorted(held.get(kind, {}), key=lambda n: (".low." in n, n)):
            if match := re.fullmatch(pattern, name):
                files.setdefault(match["key"], []).append(folder / kind / name)
    return files


def _failures(paths: list[Path], sound: dict) -> Iterator[Finding]:
    for path in paths:
        if path.stem in sound:
            yield Finding(path, "is the failure of a clip that exists", (path,))
        elif read_json(path) is None:
            yield Finding(path, CUT_OFF, (path,))


def _visible(folder: Path, held: dict[str, dict], suffix: str) -> list[Path]:
    names = held.get(folder.name, ())
    return [folder / n for n in sorted(names) if n.endswith(suffix) and not n.startswith(".")]


def _wrong(path: Path, record: dict[str, Any] | None, run_id: str) -> tuple[Path, str] | None:
    """What is wrong with a record by itself."""
    if record is None:
        return path, _defect(path)
    if record["run_id"] != run_id:
        return path, f"is a record of run {record['run_id']!r}"
    key = key_of(record)
    if key != path.stem:
        return path, f"is the record of clip {key} under another name"
    if record["video"] != f"clips/{key}.mp4":
        return path, f"names the video {record['video']!r} and not clips/{key}.mp4"
    return None


def _defect(path: Path) -> str:
    """Why `read_record` returns None."""
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, RecursionError):
        return CUT_OFF
    if not isinstance(record, dict) or record.get("status") != "ok":
        return "is no record of a finished clip"
    lacks = sorted(k for k, kind in REQUIRED.items() if not isinstance(record.get(k), kind))
    return f"is incomplete: {', '.join(lacks)}"


def fault(folder: Path, record: dict[str, Any], fast: bool) -> tuple[Path, str] | None:
    """What is wrong with the video of a sound record."""
    path = folder / record["video"]
    try:
        size = os.stat(path).st_size
        if size != record["bytes"]:
            return path, f"has {size} bytes instead of the recorded {record['bytes']}"
        if not fast and record.get("sha256") and sha256_of(path) != record["sha256"]:
            return path, "is not the file that was recorded: its hash is another"
    except FileNotFoundError:
        return path, "is gone, its record is there"
    except OSError as error:
        return path, f"cannot be read ({error.strerror})"
    return None


def _scores(path: Path) -> Iterator[Finding]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return
    bad = sum(not is_verdict(line) for line in lines[:-1]) + bool(lines[-1])
    if bad:
        what = f"has {bad} broken line(s) of {len(lines) - (not lines[-1])}"
        yield Finding(path, what, rewrite="scores")


def _recipe(path: Path, sound: dict) -> Iterator[Finding]:
    if read_json(path) is not None:
        return
    what = CUT_OFF if os.path.lexists(path) else "is gone"
    if sound:
        yield Finding(path, what, rewrite="recipe")
    elif os.path.lexists(path):
        yield Finding(path, what, (path,))


def _temporaries(folder: Path, names: dict[str, os.DirEntry]) -> Iterator[Finding]:
    for name in sorted(names):
        match = TEMPORARY.fullmatch(name)
        if not match or names[name].is_dir(follow_symlinks=False):
            continue
        host, pid = match["host"], match["pid"]
        if (alive := is_alive(host, pid)) is not True:
            where = f"of {host} left it" if alive is None else "here, is no more"
            what = f"is a temporary: process {pid} {where}"
            yield Finding(folder / name, what, (folder / name,))
