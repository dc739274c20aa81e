"""What `gc` does with the findings of verify.py that are old enough and unchanged since.

Another worker may be writing: its video exists some seconds before its record. A finding whose newest
file is younger than `older_than` is therefore left alone, and so is one with a time in the future,
whose age is unknown because the writer's clock is ahead. Ages are counted by the clock of the file
system, which is read from a new file. With 0 seconds every finding is old enough. Links are removed as
links; a path that leads out of the store is refused.
"""

import errno
import json
import os
import tempfile
import time
from pathlib import Path

from s2flow.store.files import write_json, written_whole
from s2flow.store.recipes import VERSION, id_of
from s2flow.store.records import read_record
from s2flow.store.scorebook import is_verdict
from s2flow.store.verify import Finding, state


def clock(runs_dir: Path) -> float:
    """Unix time by the clock of the file system; by this machine's where it cannot be written."""
    try:
        with tempfile.TemporaryFile(
            dir=runs_dir
        ) as file:  # it has no name that a kill could leave
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def by_age(
    findings: list[Finding], now: float, older_than: float
) -> tuple[list[Finding], list[tuple[Finding, str]]]:
    """The findings that are old enough by their newest file, and the others with the reason."""
    old, young = [], []
    for finding in findings:
        times = [s[0] / 1e9 for s in finding.as_of.values() if s]
        age = now - max(times, default=0)
        if older_than <= 0 or age >= older_than:
            old.append(finding)
        elif age < 0:
            young.append(
                (finding, f"is {_duration(-age)} from the future, a worker's clock is ahead")
            )
        else:
            young.append((finding, f"is {_duration(age)} old, another worker may be writing it"))
    return old, young


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def clean(finding: Finding, runs_dir: Path) -> str | None:
    """Apply the remedy of a finding; the reason if that is impossible or the finding is outdated."""
    for path in finding.files:
        if not path.parent.resolve().is_relative_to(runs_dir.resolve()):
            return "lies out of the store, through a link"
        if state(path) != finding.as_of[path]:
            return "has changed since"
    if finding.unless is not None and read_record(finding.unless) is not None:
        return "has a record by now"
    try:
        if finding.rewrite:
            {"scores": _rewrite_scores, "recipe": _rewrite_recipe}[finding.rewrite](finding.path)
        for path in finding.remove:
            path.unlink(missing_ok=True)
    except OSError as error:
        return f"cannot be {'written' if finding.rewrite else 'removed'} ({error.strerror})"
    return None


def _rewrite_scores(path: Path) -> None:
    """Drop the lines that are no verdict; remove a file without any."""
    kept = [line for line in path.read_bytes().split(b"\n")[:-1] if is_verdict(line)]
    if not kept:
        path.unlink()
        return
    with written_whole(path) as temporary:
        temporary.write_bytes(b"\n".join([*kept, b""]))


def _rewrite_recipe(path: Path) -> None:
    """Write the recipe of a record, with the version that gives the run its id."""
    for file in sorted((path.parent / "records").glob("[!.]*.json")):
        record = read_record(file)
        if record is not None and record["run_id"] == path.parent.name:
            recipe = json.loads(json.dumps(record["recipe"]))
            fitting = (v for v in range(VERSION, 0, -1) if id_of(v, recipe) == path.parent.name)
            write_json(path, {"version": next(fitting, VERSION), **recipe})
            return
    raise OSError(errno.ENOENT, "no record holds it")
