"""Merging two stores: what `merge OTHER --into RUNS` does.

Runs are joined by id, and their recipes must be equal. A clip is copied with all its files or not at
all, its record last, each file atomically, so that an interrupted merge is simply repeated. Of a clip
that both stores hold

    the valid one is kept (a record in its place, a video with its hash);
    of two valid ones the newer (`at`), of two with one time the one with the greater hash,

in whichever order the stores are named. A clip that was made twice is a duplicate: the record that is
kept counts it (`duplicates`) and names the other one (`merged`), so that repeated merges count nothing
twice. Files of verdicts are copied; one whose name is taken by other content gets another name.
Failures are copied where the clip does not exist. Temporaries, the index, lr_cache and other files are
not copied.
"""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from s2flow.errors import UserError
from s2flow.store.files import names_of, read_json, sha256_of, write_json, written_whole
from s2flow.store.records import key_of, read_record
from s2flow.store.verify import fault, run_folders

Record = dict[str, Any]
FILES = {  # of a clip, beside the video and the record
    **{"clips": "{}.low.mp4", "sheets": "{}.png"},
    **{"latents": "{}.safetensors", "windows": "{}.npz"},
}


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
        _check_recipes(folder, into / folder.name)
    done: Counter[str] = Counter(runs=len(folders))
    for folder in folders:
        target = into / folder.name
        if target.is_symlink():
            raise UserError(f"{target} is a link; merge into the store that it leads to")
        _merge_run(folder, target, done)
    return done


def _check_recipes(source: Path, target: Path) -> None:
    theirs = read_json(source / "recipe.json")
    if theirs is None:
        raise UserError(
            f"{source / 'recipe.json'} is gone or cut off; "
            f"type python -m s2flow.store gc {source.parent}"
        )
    mine = read_json(target / "recipe.json")
    if mine is not None and mine != theirs:
        names = [k for k in {**mine, **theirs} if mine.get(k) != theirs.get(k)]
        raise UserError(
            f"run {source.name} has another recipe in {target.parent}: {', '.join(sorted(names))} "
            "differ; nothing was merged. A recipe.json was altered: restore it first"
        )


def _merge_run(source: Path, target: Path, done: Counter[str]) -> None:
    if read_json(target / "recipe.json") is None:
        _copy(source / "recipe.json", target / "recipe.json")
    for name in _named(source / "records", ".json"):
        key = name[:-5]
        theirs = valid(source, key)
        if theirs is None or _leads_out(source, key):
            done["damaged"] += 1
            continue
        mine = valid(target, key)
        if mine is None:
            _copy_clip(source, target, key, theirs, theirs)
            done["copied"] += 1
            continue
        done["both"] += 1
        kept = newer(mine, theirs)
        if version_of(kept) != version_of(mine):
            _copy_clip(source, target, key, theirs, kept)
            done["replaced"] += 1
        elif kept != mine:
            write_json(target / "records" / name, kept)
    for name in _named(source / "failures", ".json"):
        done["failures"] += _merge_failure(source, target, name)
    for name in _named(source / "scores", ".jsonl"):
        done["scores"] += _merge_scores(source / "scores" / name, target / "scores")


def valid(folder: Path, key: str) -> Record | None:
    """The record of a clip that is complete, in its place, and has its hash."""
    record = read_record(folder / "records" / f"{key}.json")
    if record is None or record["run_id"] != folder.name or key_of(record) != key:
        return None
    if record["video"] != f"clips/{key}.mp4" or fault(folder, record, fast=False):
        return None
    return record


def version_of(record: Record) -> str:
    """Tells apart several times that one clip was made: time and hash."""
    return f"{_at(record):.3f}-{str(record.get('sha256'))[:12]}"


def newer(a: Record, b: Record) -> Record:
    """The one of two valid records that is kept; does not depend on their order."""
    one, other = sorted((a, b), key=lambda r: (_at(r), str(r.get("sha256")), _text(r)))[::-1]
    known = {m for r in (one, other) for m in r.get("merged") or []}
    if version_of(one) == version_of(other):
        count = max(_count(one), _count(other))
    else:
        new = version_of(other) not in (one.get("merged") or [])
        count = _count(one) + (1 + _count(other) if new else 0)
        known.add(version_of(other))
    return one | ({"duplicates": count, "merged": sorted(known)} if count or known else {})


def _at(record: Record) -> float:
    at = record.get("at")
    return float(at) if isinstance(at, (int, float)) else 0.0


def _count(record: Record) -> int:
    n = record.get("duplicates")
    return n if isinstance(n, int) else 0


def _text(record: Record) -> str:
    return json.dumps(record, sort_keys=True)


def _copy_clip(source: Path, target: Path, key: str, theirs: Record, kept: Record) -> None:
    """Copy all files of a clip, the record last; remove files that only the clip before it had."""
    _copy(source / theirs["video"], target / theirs["video"], theirs.get("sha256"))
    for kind, pattern in FILES.items():
        name = f"{kind}/{pattern.format(key)}"
        if (source / name).exists():
            _copy(source / name, target / name)
        else:
            (target / name).unlink(missing_ok=True)
    write_json(target / "records" / f"{key}.json", kept)
    (target / "failures" / f"{key}.json").unlink(missing_ok=True)


def _copy(source: Path, target: Path, sha256: str | None = None) -> None:
    """Atomic. Raises OSError, also where the copy has another hash."""
    with written_whole(target) as temporary:
        shutil.copyfile(source, temporary)
        if sha256 is not None and sha256_of(temporary) != sha256:
            raise OSError(f"{source} changed while it was copied; type the same command again")


def _merge_failure(source: Path, target: Path, name: str) -> int:
    theirs, mine = (read_json(f / "failures" / name) for f in (source, target))
    if theirs is None or read_record(target / "records" / name) is not None:
        return 0
    if mine is not None and (_at(mine), _text(mine)) >= (_at(theirs), _text(theirs)):
        return 0
    write_json(target / "failures" / name, theirs)
    return 1


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
    _copy(source, target)
    return 1


def _leads_out(folder: Path, key: str) -> bool:
    """Whether a file of a clip is a link out of its store."""
    root, names = folder.parent.resolve(), [f"clips/{key}.mp4", f"records/{key}.json"]
    names += [f"{kind}/{pattern.format(key)}" for kind, pattern in FILES.items()]
    return any(not (folder / n).resolve().is_relative_to(root) for n in names)


def _named(folder: Path, suffix: str) -> list[str]:
    return [] if folder.is_symlink() else names_of(folder, suffix)
