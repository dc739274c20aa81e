"""What `gc` does with the findings of verify.py that are old enough and unchanged since.

Another worker may be writing: its video exists some seconds before its record. A finding whose newest
file is younger than `older_than` is therefore left alone, and so is one with a time in the future,
whose age is unknown because the writer's clock is ahead. Ages are counted by the clock of the file
system, which is read from a new file. With 0 seconds every finding is old enough. Links are removed as
links; a path that leads out of the store is refused.
"""

import os
import tempfile
import time
from pathlib import Path

from s2flow.store.files import write_json, written_whole
from s2flow.store.recipes import VERSION, id_of
from s2flow.store.records import read_record
from s2flow.store.scorebook import parsed
from s2flow.store.verify import Finding, state


def clock(runs_dir: Path) -> float:
    """Unix time by the clock of the file system; by this machine's where it cannot be written."""
    try:
        with tempfile.TemporaryFile(
            dir=runs_dir
        ) as file:  # without a name that a kill could leave
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def too_young(finding: Finding, now: float, older_than: float) -> str | None:
    """Why a finding is left alone; None if its newest file is old enough."""
    age = now - max((s[0] / 1e9 for s in finding.as_of.values() if s), default=0)
    if older_than <= 0 or age >= older_than:
        return None
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    unit, length = next((u for u in units if abs(age) >= u[1]), ("s", 1))
    text = f"{abs(age) / length:.3g} {unit}"
    if age < 0:
        return f"is {text} from the future, a worker's clock is ahead"
    return f"is {text} old, another worker may be writing it"


def clean(finding: Finding, runs_dir: Path) -> str | None:
    """Apply the remedy of a finding; the reason if that is impossible or the finding is outdated."""
    for path, before in finding.as_of.items():
        if not path.parent.resolve().is_relative_to(runs_dir.resolve()):
            return "lies out of the store, through a link"
        if state(path) != before:
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
    kept = [line for line in path.read_bytes().split(b"\n")[:-1] if parsed(line) is not None]
    if not kept:
        path.unlink()
        return
    with written_whole(path) as temporary:
        temporary.write_bytes(b"\n".join([*kept, b""]))


def _rewrite_recipe(path: Path) -> None:
    """Write the recipe of a sound record, with the version that gives the run its id."""
    run_id = path.parent.name
    records = map(read_record, sorted((path.parent / "records").glob("[!.]*.json")))
    recipe = next((r["recipe"] for r in records if r and r["run_id"] == run_id), None)
    if recipe is None:
        raise OSError(0, "no record holds it")
    fitting = (v for v in range(VERSION, 0, -1) if id_of(v, recipe) == run_id)
    write_json(path, {"version": next(fitting, VERSION), **recipe})
