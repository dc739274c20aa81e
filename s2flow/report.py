"""A folder of runs as one static page: clips side by side, their scores, seconds and recipes.

    python -m s2flow.report runs/ [--output FILE] [--embed]

Writes runs/report.html, which opens from disk and asks nothing of any network. One row per prompt
and seed: the LR clip, then the clip of each run, labelled by what differs between the runs. Videos
are named by relative path, so page and runs move together; --embed puts them into the page, which
can then be mailed. A clip that is missing, half-written, failed or badly recorded leaves a note.
"""

import argparse
import base64
import hashlib
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined

from s2flow.cli import one_line
from s2flow.errors import UserError
from s2flow.recipe import LATER, LOW, VERSION
from s2flow.scorebook import ScoreBook
from s2flow.store import STAGES, clip_key, generation_seconds, read_record, written_whole

Row = tuple[str, int, str | None]  # prompt, seed, the prompt that an augmented one stands for
Address = Callable[[Path], str]  # of a video, as the page names it


@dataclass(frozen=True)
class Run:
    """A run's folder as found: finished clips, errors of failed ones, files that say nothing."""

    folder: Path
    recipe: dict[str, Any]  # flat: windows.name, windows.exponents
    records: dict[Row, dict[str, Any]]
    failures: dict[Row, str]
    broken: dict[str, str]  # clip key -> file

    @property
    def id(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def shown(self) -> bool:
        """Whether any of its clips was finished or failed."""
        return bool(self.records or self.failures)


def write_report(runs_dir: Path, output: Path | None = None, embed: bool = False) -> str:
    """Write the page, whole or not at all; returns what to tell the user.

    output: by default runs_dir/report.html. Raises UserError if runs_dir holds no finished clip
    or the page cannot be written.
    """
    output = output or runs_dir / "report.html"
    shown = _shown(read_runs(runs_dir), lambda path: _address(path, output, embed))
    try:
        with written_whole(output) as temporary:
            temporary.write_bytes(_render(title=runs_dir.resolve().name, **shown))
    except (OSError, ValueError) as error:  # ValueError: a path without a name
        reason = getattr(error, "strerror", error)
        raise UserError(f"{output} cannot be written ({reason}); type --output FILE") from None
    notes = sum(bool(c["note"]) for row in shown["rows"] for c in row["cells"])
    line = f"{output}: {len(shown['runs'])} run(s), {len(shown['rows'])} row(s)"
    return line + (f", {notes} clip(s) with a note of what is wrong" if notes else "")


def _render(**shown: Any) -> bytes:
    """The page. Jinja escapes every text; no script runs but the template's own, by its hash."""
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    script = re.search("<script>(.*?)</script>", template, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    jinja = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = jinja.from_string(template).render(script_hash=digest, stages=STAGES, **shown)
    return page.encode("utf-8", "replace")


# -- reading ----------------------------------------------------------------------------------


def read_runs(runs_dir: Path) -> list[Run]:
    """The runs of a folder, by name. Raises UserError if they hold no finished clip."""
    if (runs_dir / "records").is_dir():
        above = runs_dir.resolve().parent
        raise UserError(f"{runs_dir} is a single run; type the folder that holds it: {above}")
    try:
        folders = sorted(p for p in runs_dir.iterdir() if (p / "records").is_dir())
    except OSError as error:
        raise UserError(f"{runs_dir}: {error.strerror}; type the folder of the runs") from None
    runs = [_read_run(folder) for folder in folders]
    if not any(run.records for run in runs):
        found = f"{len(runs)} run(s) but" if runs else "no run and"
        raise UserError(f"{runs_dir} holds {found} no finished clip; python run.py makes one")
    return runs


def _read_run(folder: Path) -> Run:
    recipe, book = _json(folder / "recipe.json"), ScoreBook(folder)
    records, failures, broken = {}, {}, {} if recipe else {"recipe": "recipe.json"}
    for path in sorted(folder.glob("failures/[!.]*.json")):
        failure = _json(path)
        prompt, seed = failure.get("prompt"), failure.get("seed")
        if isinstance(prompt, str) and isinstance(seed, int):
            prompt = prompt.encode("utf-8", "replace").decode()
            failures[_row_of(failure | {"prompt": prompt})] = str(failure.get("error"))
        else:
            broken[path.stem] = f"failures/{path.name}"
    for path in sorted(folder.glob("records/[!.]*.json")):
        record = read_record(path)
        if record is not None and _sound(record):
            records[_row_of(record)] = book.joined(record)
            recipe = {"version": recipe.get("version", VERSION), **record["recipe"]}
        else:
            broken[path.stem] = f"records/{path.name}"
    flat: dict[str, Any] = {}
    for name, value in recipe.items():
        nested = isinstance(value, dict)
        flat |= {f"{name}.{k}": v for k, v in value.items()} if nested else {name: value}
    return Run(folder, flat, records, failures, broken)


def _row_of(record: dict[str, Any]) -> Row:
    """Clips of one augmented text that stand for two prompts are two rows."""
    return record["prompt"], record["seed"], record.get("original_prompt")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = None
    return value if isinstance(value, dict) else {}


def _sound(record: dict[str, Any]) -> bool:
    """Whether a record holds what the page shows, in the types that the rest relies on."""
    try:
        record["prompt"].encode()
        Path(record["video"])
        height, width = record["recipe"].get("low", (1, 1))
        whole = [record[k] for k in ("seed", "height", "width", "bytes")]
        whole += [height, width, record.get("prompt_index", [0])[0]]
        numbers = [*record["seconds"].values(), *(record.get("density") or {}).values()]
        numbers += [s for s in record.get("scores", {}).values() if s is not None]
        return all(isinstance(x, int) for x in whole) and all(map(math.isfinite, numbers))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        return False


# -- labels -----------------------------------------------------------------------------------


def labels(runs: list[Run]) -> dict[str, str]:
    """Run id -> the words in which these runs differ; equal ones are told apart by the id."""
    words = {run.id: _words(run) for run in runs}
    differ = _differing(words.values())
    named = {
        i: ", ".join(text for k, text in w.items() if k in differ) or w["method"]
        for i, w in words.items()
    }
    count = Counter(named.values())
    return {i: f"{text} ({i})" if count[text] > 1 else text for i, text in named.items()}


def _words(run: Run) -> dict[str, str]:
    """A run's knobs as words; windows and sparsity make one, solver and order another."""
    recipe = dict(run.recipe)
    words = {"method": str(recipe.pop("method", run.id))}
    if windows := next((r.get("windows") for r in run.records.values()), None):
        cubed = "³" if recipe.get("density") == "per_axis" else ""
        kept = f" s={recipe['sparsity']}{cubed}" if "sparsity" in recipe else ""
        words["windows"] = f"{windows}{kept}"
    if "solver" in recipe:
        order = f" K={recipe['order']}" if "order" in recipe else ""
        words["solver"] = f"{recipe['solver']}{order}"
    said = ("sparsity", "density", "solver", "order")
    rest = {k: v for k, v in recipe.items() if k not in said and not k.startswith("windows.")}
    return words | {k: f"{k}={_text(v)}" for k, v in rest.items()}


def _differing(knobs: Iterable[dict[str, Any]]) -> set[str]:
    """The keys that have more than one value among those that have them."""
    values = {(k, str(v)) for some in knobs for k, v in some.items()}
    return {k for k, count in Counter(k for k, _ in values).items() if count > 1}


def _text(value: Any) -> str:
    """A knob's value; [64, 96] is 64x96, and lists of fractions are cut to three places."""
    if isinstance(value, list) and value and all(isinstance(x, int) for x in value):
        return "x".join(map(str, value))
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return re.sub(r"(\.\d{3})\d+", r"\1", text) if isinstance(value, list) else text


def _natural(text: str) -> list[Any]:
    """Sort key by which t_i=8 stands before t_i=12."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [float(p) if i % 2 else p for i, p in enumerate(parts)]


# -- what the page shows ----------------------------------------------------------------------


def _shown(found: list[Run], address: Address) -> dict[str, Any]:
    """Everything the template asks for, in an order that only the runs decide."""
    runs = [run for run in found if run.shown]
    label = labels(runs)
    runs.sort(key=lambda run: (_natural(label[run.id]), run.id))
    place = {row: math.inf for run in runs for row in run.failures}
    place |= {k: r.get("prompt_index", [0])[0] for run in runs for k, r in run.records.items()}
    lows: dict[str, list[Run]] = {}
    for run in runs:
        if "low" in run.recipe and run.records:
            lows.setdefault(str(_low_knobs(run)), []).append(run)
    differ = _differing(_low_knobs(group[0]) for group in lows.values())
    records = [record for run in runs for record in run.records.values()]
    scores = list(dict.fromkeys(name for record in records for name in record["scores"]))
    rows = []
    for row in sorted(place, key=lambda row: (place[row], row)):
        cells = [_low_cell(group, differ, row, address) for group in lows.values()]
        for i, run in enumerate(runs):
            cell = _cell(run, row, scores, address)
            cells.append({"run": i, "label": label[run.id], **cell})
        rows.append({"prompt": row[0], "seed": row[1], "cells": cells})
    return {
        "runs": [_summary(run, label[run.id], scores) for run in runs],
        "differ": _differing(run.recipe for run in runs),
        "scores": scores,
        "rows": rows,
        "notes": _notes(found, {clip_key(*row) for row in place}),
    }


def _notes(found: list[Run], keys: set[str]) -> list[str]:
    """What a reader of the table must know, and broken files that belong to no row."""
    notes = [f"{run.id} has no finished clip." for run in found if not run.shown]
    for run in found:
        lost = [file for key, file in run.broken.items() if key not in keys or not run.shown]
        notes += [f"{run.id}/{file} cannot be read." for file in lost]
    clips = [set(run.records) for run in found if run.shown]
    common = set.intersection(*clips)
    if any(c != common for c in clips):
        notes.append(
            f"The runs do not hold the same clips ({len(common)} are in all of them): "
            "compare them row by row, not by their means."
        )
    devices = sorted({str(r.get("device")) for run in found for r in run.records.values()})
    if len(devices) > 1:
        notes.append(f"Seconds are from different machines: {'; '.join(devices)}.")
    return notes


def _cell(run: Run, row: Row, scores: list[str], address: Address) -> dict[str, Any]:
    """One run's clip of a row: its video or what is wrong, its scores and seconds."""
    record, key = run.records.get(row), clip_key(*row)
    note = f"failed: {run.failures[row]}" if row in run.failures else None
    if record is None:
        return {"note": f"{run.broken[key]} cannot be read" if key in run.broken else note}
    video = run.folder / "clips" / Path(record["video"]).name
    size = record["height"], record["width"]
    return {
        "note": note,
        **_video(video, size, address, record["bytes"]),
        "scores": [record["scores"].get(name) for name in scores],
        "seconds": generation_seconds(record),
    }


def _low_knobs(run: Run) -> dict[str, Any]:
    """What decides a run's LR clips: runs that agree in it share them."""
    return {k: run.recipe.get(k, LATER.get(k)) for k in (*LOW, "version")}


def _low_cell(group: list[Run], differ: set[str], row: Row, address: Address) -> dict[str, Any]:
    """The LR clip of a row, from the first run that has it of those that share it."""
    recipe = _low_knobs(group[0])
    words = [f"LR {'×'.join(map(str, recipe['low']))}"]
    words += [f"{k}={_text(recipe[k])}" for k in sorted(differ - {"low"})]
    cell: dict[str, Any] = {"run": None, "label": ", ".join(words), "note": None}
    for run in (run for run in group if row in run.records):
        name = f"{Path(run.records[row]['video']).stem}.low.mp4"
        video = _video(run.folder / "clips" / name, recipe["low"], address)
        if "src" in video:
            return {**cell, "note": None, **video}
        cell |= video
    return cell


def _video(path: Path, size: Any, address: Address, full: int | None = None) -> dict[str, Any]:
    """Where a video is, in the page's terms, or a note of what is wrong with it."""
    try:
        found = path.stat().st_size
        if found == 0 or full not in (None, found):
            return {"note": f"clips/{path.name} is half-written ({found} bytes)"}
        return {"src": address(path), "height": size[0], "width": size[1]}
    except OSError as error:
        return {"note": f"clips/{path.name}: {error.strerror}"}


def _address(path: Path, output: Path, embed: bool) -> str:
    """The video itself, or the percent-encoded way to it from the page's folder."""
    if embed:
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    way = os.path.relpath(path.parent.resolve() / path.name, output.resolve().parent)
    return quote(os.fsencode(Path(way).as_posix()))


def _summary(run: Run, label: str, scores: list[str]) -> dict[str, Any]:
    """A run's row of the table and its recipe; a mean is (value, over how many)."""
    records = list(run.records.values())
    origin = {k: "; ".join(sorted({str(r.get(k)) for r in records})) for k in ("device", "commit")}
    return {
        "id": run.id,
        "label": label,
        "clips": len(records),
        "density": _mean(d for r in records for d in (r.get("density") or {}).values()),
        "scores": [_mean(r["scores"].get(name) for r in records) for name in scores],
        "seconds": [_mean(r["seconds"].get(stage) for r in records) for stage in STAGES],
        "total": _mean(generation_seconds(r) for r in records),
        "recipe": {k: _text(v) for k, v in run.recipe.items()} | origin,
    }


def _mean(values: Iterable[float | None]) -> tuple[float, int]:
    known = [v for v in values if v is not None]
    return (fmean(known) if known else 0.0), len(known)


def main(argv: list[str] | None = None) -> None:
    """The command line; exits with 2 and one line if there is nothing to show."""
    parser = argparse.ArgumentParser("python -m s2flow.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("runs", type=Path, help="the folder that run.py wrote its runs to")
    parser.add_argument("--output", type=Path, metavar="FILE", help="RUNS/report.html if not set")
    parser.add_argument("--embed", action="store_true", help="put the videos into the page")
    args = parser.parse_args(argv)
    try:
        print(write_report(args.runs, args.output, args.embed))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
