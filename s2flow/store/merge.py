"""Merging two stores: what `merge OTHER --into RUNS` does.

Runs are joined by id, and their recipes must be equal. A clip is copied with all its files or not at
all, its record last, each file atomically, so that an interrupted merge is simply repeated. Of a clip
that both stores hold

    the valid one is kept (a record in its place, a video with its hash);
    of two valid ones the newer (`at`), of two with one time the one with the greater hash,

in whichever order the stores are named. A clip that was made twice is a duplicate: the record that is
kept counts it (`duplicates`) and names the other one (`merged`), so that repeated merges count nothing
twice. Files of verdicts are copied; one whose name is taken by other content gets another name.
Failures are copied where the clip does not exist. Nothing else is copied.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from s2flow.errors import UserError
from s2flow.store.files import copy_whole, read_json, sha256_of, write_json
from s2flow.store.records import read_record
from s2flow.store.verify import fault, files_of, run_folders

Record = dict[str, Any]


def merge(other: Path, into: Path) -> Counter[str]:
    """Copy everything of `other` into another store; counts of what was done.

    Keys: runs, copied, replaced, both, damaged, failures, scores. Raises UserError, before anything
    is written, if the stores cannot be merged, and OSError where the disk is full.
    """
    folders = run_folders(other)
    if not folders:
        raise UserError(f"{other} holds no run; type the folder that run.py wrote its runs to")
    here, there = into.resolve(), other.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise UserError(
            f"--into {into} and {other} are one folder or one holds the other; "
            "type two that lie beside each other"
        )
    if into.exists():
        run_folders(into)
    for folder in folders:
        _check_run(folder, into / folder.name)
    done: Counter[str] = Counter(runs=len(folders))
    for folder in folders:
        _merge_run(folder, into / folder.name, done)
    return done


def _check_run(source: Path, target: Path) -> None:
    theirs, mine = read_json(source / "recipe.json"), read_json(target / "recipe.json")
    if theirs is None:
        raise UserError(
            f"{source / 'recipe.json'} is gone or cut off; "
            f"type python -m s2flow.store gc {source.parent}"
        )
    if target.is_symlink():
        raise UserError(f"{target} is a link; merge into the store that it leads to")
    if mine is not None and mine != theirs:
        names = [k for k in {**mine, **theirs} if mine.get(k) != theirs.get(k)]
        raise UserError(
            f"run {source.name} has another recipe in {target.parent}: {', '.join(sorted(names))} "
            "differ; nothing was merged. A recipe.json was altered: restore it first"
        )


def _merge_run(source: Path, target: Path, done: Counter[str]) -> None:
    if read_json(target / "recipe.json") is None:
        copy_whole(source / "recipe.json", target / "recipe.json")
    for path in _files(source / "records", ".json"):
        place, theirs = target / "records" / path.name, _valid(path)
        mine = _valid(place)
        if theirs is None or _leads_out(path):
            done["damaged"] += 1
        elif mine is None:
            _copy_clip(source, target, theirs, theirs)
            done["copied"] += 1
        else:
            done["both"] += 1
            kept = _newer(mine, theirs)
            if _version(kept) != _version(mine):
                _copy_clip(source, target, theirs, kept)
                done["replaced"] += 1
            elif kept != mine:
                write_json(place, kept)
    for path in _files(source / "failures", ".json"):
        theirs, mine = read_json(path), read_json(target / "failures" / path.name)
        finished = read_record(target / "records" / path.name) is not None
        if theirs and not finished and (not mine or _order(mine) < _order(theirs)):
            write_json(target / "failures" / path.name, theirs)
            done["failures"] += 1
    for path in _files(source / "scores", ".jsonl"):
        done["scores"] += _merge_scores(path, target / "scores")


def _files(folder: Path, ending: str) -> list[Path]:
    return [] if folder.is_symlink() else sorted(folder.glob(f"[!.]*{ending}"))


def _valid(path: Path) -> Record | None:
    """The record of a clip that is complete, in its place, and has its hash."""
    record = read_record(path)
    return record if record is not None and fault(path, record, fast=False) is None else None


def _order(record: Record) -> tuple[float, str, str]:
    """The record or failure with the greater one is kept, whichever of two comes first."""
    at = record.get("at")
    time = float(at) if isinstance(at, (int, float)) else 0.0
    return time, str(record.get("sha256")), json.dumps(record, sort_keys=True)


def _version(record: Record) -> str:
    """Tells apart several times that one clip was made: time and hash."""
    at, sha256, _ = _order(record)
    return f"{at:.3f}-{sha256[:12]}"


def _newer(a: Record, b: Record) -> Record:
    """The one of two valid records that is kept."""
    other, one = sorted((a, b), key=_order)
    counts = [r.get("duplicates") or 0 for r in (one, other)]
    known = {*one.get("merged", ()), *other.get("merged", ())}
    if _version(one) == _version(other):
        count = max(counts)
    else:
        again = _version(other) in one.get("merged", ())
        count = counts[0] + (0 if again else 1 + counts[1])
        known.add(_version(other))
    return one | ({"duplicates": count, "merged": sorted(known)} if count or known else {})


def _copy_clip(source: Path, target: Path, theirs: Record, kept: Record) -> None:
    """Copy all files of a clip, the record last; remove files that only the clip before it had."""
    key = Path(theirs["video"]).stem
    for ours, path in zip(files_of(target, key), files_of(source, key), strict=True):
        if path.exists():
            copy_whole(path, ours, theirs.get("sha256") if path.name == f"{key}.mp4" else None)
        else:
            ours.unlink(missing_ok=True)
    write_json(target / "records" / f"{key}.json", kept)
    (target / "failures" / f"{key}.json").unlink(missing_ok=True)


def _merge_scores(source: Path, folder: Path) -> int:
    """Copy a file of verdicts; of two with one name the longer one if it continues the other."""
    theirs, target = source.read_bytes(), folder / source.name
    if target.exists():
        mine = target.read_bytes()
        if mine.startswith(theirs):
            return 0
        if not theirs.startswith(mine):
            target = target.with_name(f"{target.stem}-{sha256_of(source)[:8]}.jsonl")
            if target.exists():
                return 0
    copy_whole(source, target)
    return 1


def _leads_out(record: Path) -> bool:
    """Whether a file of a clip is a link out of its store."""
    folder = record.parents[1]
    root, files = folder.parent.resolve(), [record, *files_of(folder, record.stem)]
    return any(not path.resolve().is_relative_to(root) for path in files)
