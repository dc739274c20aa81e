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
from s2flow.store.files import TEMPORARY, is_alive, read_json, scan, sha256_of
from s2flow.store.records import REQUIRED, key_of, read_record
from s2flow.store.scorebook import parsed

# a clip's files beside the record: folder -> what follows the key in their names
FILES = {"clips": (".mp4", ".low.mp4"), "sheets": (".png",), "latents": (".safetensors",)}
FILES |= {"windows": (".npz",)}
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
        finding.as_of.update({path: state(path) for path in finding.remove or (finding.path,)})
        yield finding


def _findings(runs_dir: Path, fast: bool) -> Iterator[Finding]:
    for folder in run_folders(runs_dir):
        yield from _of_run(folder, fast)
    for folder in (runs_dir, runs_dir / CACHE):
        if not folder.is_symlink():
            yield from _temporaries(folder)


def _of_run(folder: Path, fast: bool) -> Iterator[Finding]:
    kinds = [k for k in (*FILES, *OTHERS) if not (folder / k).is_symlink()]
    held = {kind: {e.name for e in scan(folder / kind)} for kind in kinds}

    def visible(kind: str, ending: str) -> list[Path]:
        names = sorted(held.get(kind, ()))
        return [folder / kind / n for n in names if n.endswith(ending) and n[0] != "."]

    sound: dict[str, dict[str, Any]] = {}
    for path in visible("records", ".json"):
        record = read_record(path)
        if (wrong := fault(path, record, fast)) is None:
            sound[path.stem] = record
        else:
            others = (p for p in files_of(folder, path.stem) if p.parent.name in kinds)
            yield Finding(*wrong, (path, *others))
    yield from _orphans(folder, held)
    for path in visible("failures", ".json"):
        if path.stem in sound:
            yield Finding(path, "is the failure of a clip that exists", (path,))
        elif read_json(path) is None:
            yield Finding(path, CUT_OFF, (path,))
    for path in visible("scores", ".jsonl"):
        yield from _scores(path)
    recipe = folder / "recipe.json"
    exists = os.path.lexists(recipe)
    if read_json(recipe) is None and (sound or exists):
        remedy = {"rewrite": "recipe"} if sound else {"remove": (recipe,)}
        yield Finding(recipe, CUT_OFF if exists else "is gone", **remedy)
    for kind in (".", *kinds):
        yield from _temporaries(folder / kind)


def _orphans(folder: Path, held: dict[str, set[str]]) -> Iterator[Finding]:
    for kind, endings in FILES.items():
        for name in sorted(held.get(kind, ())):
            path, record = folder / kind / name, folder / "records" / f"{name[:16]}.json"
            of_clip = re.fullmatch("[0-9a-f]{16}", name[:16]) and name[16:] in endings
            if of_clip and record.name not in held.get("records", ()):
                yield Finding(path, "has no record", (path,), unless=record)


def files_of(folder: Path, key: str) -> list[Path]:
    """Where the files of a clip lie, without its record; the video first."""
    return [folder / kind / f"{key}{e}" for kind, endings in FILES.items() for e in endings]


def fault(path: Path, record: dict[str, Any] | None, fast: bool) -> tuple[Path, str] | None:
    """What is wrong with a record, None if it cannot be read, or with its video."""
    folder = path.parents[1]
    if record is None:
        return path, _defect(path)
    if record["run_id"] != folder.name:
        return path, f"is a record of run {record['run_id']!r}"
    key = key_of(record)
    if key != path.stem:
        return path, f"is the record of clip {key} under another name"
    if record["video"] != f"clips/{key}.mp4":
        return path, f"names the video {record['video']!r} and not clips/{key}.mp4"
    video = folder / record["video"]
    try:
        size = os.stat(video).st_size
        if size != record["bytes"]:
            return video, f"has {size} bytes instead of the recorded {record['bytes']}"
        if not fast and record.get("sha256") and sha256_of(video) != record["sha256"]:
            return video, "is not the file that was recorded: its hash is another"
    except FileNotFoundError:
        return video, "is gone, its record is there"
    except OSError as error:
        return video, f"cannot be read ({error.strerror})"
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


def _scores(path: Path) -> Iterator[Finding]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return
    bad = sum(parsed(line) is None for line in lines[:-1]) + bool(lines[-1])
    if bad:
        what = f"has {bad} broken line(s) of {len(lines) - (not lines[-1])}"
        yield Finding(path, what, rewrite="scores")


def _temporaries(folder: Path) -> Iterator[Finding]:
    for path in sorted(Path(entry.path) for entry in scan(folder)):
        match = TEMPORARY.fullmatch(path.name)
        if match and (alive := is_alive(match["host"], match["pid"])) is not True:
            where = f"of {match['host']} left it" if alive is None else "here, is no more"
            what = f"is a temporary: process {match['pid']} {where}"
            yield Finding(path, what, (path,))
