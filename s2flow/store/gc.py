"""What `gc` removes: findings of verify.py, if they are old enough and nobody has touched them since.

Another worker may be writing: its video lies there some seconds before its record. So a finding whose
newest file is younger than `older_than` is left alone, and so is one from the future, whose writer's
clock is ahead, since nobody can tell how old it is. Age is counted by the clock of the disk itself: a
file is written and its time is read. With 0 seconds everything is taken. Files are named by verify.py
and removed one by one, links as links; a path that leads out of the store is refused.
"""

import errno
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from s2flow.store.files import write_json, written_whole
from s2flow.store.recipes import VERSION, id_of
from s2flow.store.records import read_record
from s2flow.store.scorebook import is_verdict
from s2flow.store.verify import Finding, state


@dataclass(frozen=True)
class Sorted:
    """Findings that are old enough, and the others with the reason."""

    old: list[Finding]
    young: list[tuple[Finding, str]]


def clock(runs_dir: Path) -> float:
    """Seconds since 1970 by the disk's own clock; by this machine's where nothing can be written."""
    try:
        with tempfile.TemporaryFile(
            dir=runs_dir
        ) as file:  # has no name, so that no kill leaves it
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def by_age(findings: list[Finding], now: float, older_than: float) -> Sorted:
    """Which are old enough, by the newest of their files."""
    old, young = [], []
    for finding in findings:
        times = [s[0] / 1e9 for s in finding.as_of.values() if s]
        age = now - max(times, default=0)
        if older_than <= 0 or age >= older_than:
            old.append(finding)
        elif age < 0:
            why = f"is {said(-age)} from the future, a worker's clock is ahead"
            young.append((finding, why))
        else:
            young.append((finding, f"is {said(age)} old, another worker may be writing it"))
    return Sorted(old, young)


def said(seconds: float) -> str:
    """A time in one unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def clean(finding: Finding, runs_dir: Path) -> str | None:
    """Remove or mend what was found; a reason if that is not possible or no more right."""
    for path in finding.files:
        if not path.parent.resolve().is_relative_to(runs_dir.resolve()):
            return "lies out of the store, through a link"
        if state(path) != finding.as_of[path]:
            return "has changed since"
    if finding.unless is not None and read_record(finding.unless) is not None:
        return "has a record by now"
    try:
        if finding.mend:
            {"scores": _mend_scores, "recipe": _mend_recipe}[finding.mend](finding.path)
        for path in finding.remove:
            path.unlink(missing_ok=True)
    except OSError as error:
        return f"cannot be {'written' if finding.mend else 'removed'} ({error.strerror})"
    return None


def _mend_scores(path: Path) -> None:
    """The same file without lines that are no verdict; a file without any goes."""
    kept = [line for line in path.read_bytes().split(b"\n")[:-1] if is_verdict(line)]
    if not kept:
        path.unlink()
        return
    with written_whole(path) as temporary:
        temporary.write_bytes(b"\n".join([*kept, b""]))


def _mend_recipe(path: Path) -> None:
    """The recipe that its records hold, under the version that gives the run its name."""
    for file in sorted((path.parent / "records").glob("[!.]*.json")):
        record = read_record(file)
        if record is not None and record["run_id"] == path.parent.name:
            recipe = json.loads(json.dumps(record["recipe"]))
            fitting = (v for v in range(VERSION, 0, -1) if id_of(v, recipe) == path.parent.name)
            write_json(path, {"version": next(fitting, VERSION), **recipe})
            return
    raise OSError(errno.ENOENT, "no record holds it")
