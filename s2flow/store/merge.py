"""Two stores become one: what `merge OTHER --into RUNS` does.

Runs are joined by id, and their recipes must agree. A clip comes with all its files or not at all, its
record last, each file written whole; so a merge that was killed is typed again. Of a clip that both
stores have

    the valid one wins (a record that belongs there, a video of its hash);
    of two valid ones the one made last (`at`), of two made at once the one with the greater hash,

whichever store is named first. Two makings of one clip are a duplicate: the record that stays counts it
(`duplicates`) and names the making that went (`merged`), so that merging again counts nothing twice.
Verdicts are copied, a file whose name is taken by another under a name of its own. Failures are copied
where the clip does not exist. Temporaries, the index, lr_cache and whatever else
lies there stay behind.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from s2flow.errors import UserError
from s2flow.store.files import entries, sha256_of, write_json, written_whole
from s2flow.store.records import key_of, read_record
from s2flow.store.verify import fault, run_folders

Record = dict[str, Any]
FILES = {  # of a clip, beside the video and the record
    **{"clips": "{}.low.mp4", "sheets": "{}.png"},
    **{"latents": "{}.safetensors", "windows": "{}.npz"},
}


def merge(other: Path, into: Path) -> Counter[str]:
    """Bring everything of `other` into another store; counts of what was done.

    Keys: runs, copied, replaced, both, damaged, failures, scores. Raises UserError, before anything
    is written, if it cannot be, and OSError where the disk is full.
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
    theirs = _json(source / "recipe.json")
    if theirs is None:
        raise UserError(
            f"{source / 'recipe.json'} is gone or cut off; "
            f"type python -m s2flow.store gc {source.parent}"
        )
    mine = _json(target / "recipe.json")
    if mine is not None and mine != theirs:
        names = [k for k in {**mine, **theirs} if mine.get(k) != theirs.get(k)]
        raise UserError(
            f"run {source.name} is another recipe in {target.parent}: {', '.join(sorted(names))} "
            "differ; nothing was merged. A recipe.json was altered: put it right first"
        )


def _merge_run(source: Path, target: Path, done: Counter[str]) -> None:
    if _json(target / "recipe.json") is None:
        _copy(source / "recipe.json", target / "recipe.json")
    for name in sorted(_named(source / "records", ".json")):
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
        stays = of_two(mine, theirs)
        if making(stays) != making(mine):
            _copy_clip(source, target, key, theirs, stays)
            done["replaced"] += 1
        elif stays != mine:
            write_json(target / "records" / name, stays)
    for name in sorted(_named(source / "failures", ".json")):
        done["failures"] += _merge_failure(source, target, name)
    for name in sorted(_named(source / "scores", ".jsonl")):
        done["scores"] += _merge_scores(source / "scores" / name, target / "scores")


def valid(folder: Path, key: str) -> Record | None:
    """The record of a clip that is whole, in its place, and of its hash."""
    record = read_record(folder / "records" / f"{key}.json")
    if record is None or record["run_id"] != folder.name or key_of(record) != key:
        return None
    if record["video"] != f"clips/{key}.mp4" or fault(folder, record, fast=False):
        return None
    return record


def making(record: Record) -> str:
    """Which time of making a clip a record tells of."""
    return f"{_at(record):.3f}-{str(record.get('sha256'))[:12]}"


def of_two(a: Record, b: Record) -> Record:
    """The record that stays of two valid ones, whichever comes first."""
    one, other = sorted((a, b), key=lambda r: (_at(r), str(r.get("sha256")), _text(r)))[::-1]
    known = {m for r in (one, other) for m in r.get("merged") or []}
    if making(one) == making(other):
        count = max(_count(one), _count(other))
    else:
        new = making(other) not in (one.get("merged") or [])
        count = _count(one) + (1 + _count(other) if new else 0)
        known.add(making(other))
    return one | ({"duplicates": count, "merged": sorted(known)} if count or known else {})


def _at(record: Record) -> float:
    at = record.get("at")
    return float(at) if isinstance(at, (int, float)) else 0.0


def _count(record: Record) -> int:
    n = record.get("duplicates")
    return n if isinstance(n, int) else 0


def _text(record: Record) -> str:
    return json.dumps(record, sort_keys=True)


def _copy_clip(source: Path, target: Path, key: str, theirs: Record, stays: Record) -> None:
    """All files of a clip, the record last; what the clip before it had and it has not goes."""
    _copy(source / theirs["video"], target / theirs["video"], theirs.get("sha256"))
    for kind, pattern in FILES.items():
        name = f"{kind}/{pattern.format(key)}"
        if (source / name).exists():
            _copy(source / name, target / name)
        else:
            (target / name).unlink(missing_ok=True)
    write_json(target / "records" / f"{key}.json", stays)
    (target / "failures" / f"{key}.json").unlink(missing_ok=True)


def _copy(source: Path, target: Path, sha256: str | None = None) -> None:
    """Whole or not at all. Raises OSError, also where the copy has another hash."""
    with written_whole(target) as temporary:
        shutil.copyfile(source, temporary)
        if sha256 is not None and sha256_of(temporary) != sha256:
            raise OSError(f"{source} changed while it was copied; type the same again")


def _merge_failure(source: Path, target: Path, name: str) -> int:
    theirs, mine = (_json(f / "failures" / name) for f in (source, target))
    if theirs is None or read_record(target / "records" / name) is not None:
        return 0
    if mine is not None and (_at(mine), _text(mine)) >= (_at(theirs), _text(theirs)):
        return 0
    write_json(target / "failures" / name, theirs)
    return 1


def _merge_scores(source: Path, folder: Path) -> int:
    """A file of verdicts; of two with one name the longer one if it goes on from the other."""
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


def _named(folder: Path, ending: str) -> Iterator[str]:
    if not folder.is_symlink():
        yield from (n for n in entries(folder) if n.endswith(ending) and not n.startswith("."))


def _json(path: Path) -> Any:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
