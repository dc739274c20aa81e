"""The data of the page: runs with their labels and means, rows of clips, notes of what is wrong."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from s2flow.embedded.world import WORLDS
from s2flow.metrics import bootstrap_interval
from s2flow.report.media import Media
from s2flow.report.reading import Row, Run
from s2flow.store import STAGES, clip_key, generation_seconds
from s2flow.store.recipes import ADDED_FIELDS, LOW_FIELDS, order_suffix, sparsity_suffix

RESAMPLES = 2000  # of the intervals in the plot


def page_data(every: list[Run], media: Media) -> dict[str, Any]:
    """All data of the page, ready for JSON, in an order that depends on the runs alone."""
    runs = [run for run in every if run.shown]
    label = labels(runs)
    runs.sort(key=lambda run: (_natural(label[run.id]), run.id))
    place = {row: math.inf for run in runs for row in run.failures}
    place |= {k: r.get("prompt_index", [0])[0] for run in runs for k, r in run.records.items()}
    lows: dict[str, list[Run]] = {}
    for run in runs:
        if "low" in run.recipe and run.records:
            lows.setdefault(str(_low_knobs(run)), []).append(run)
    differ = differing(_low_knobs(group[0]) for group in lows.values())
    records = [record for run in runs for record in run.records.values()]
    scores = list(dict.fromkeys(name for record in records for name in record["scores"]))
    rows = []
    for row in sorted(place, key=lambda row: (place[row], row[0], row[1], row[2] or "")):
        cells = [_low_cell(group, differ, row, media) for group in lows.values()]
        cells += [{"run": i} | _cell(run, row, scores, media) for i, run in enumerate(runs)]
        named = {"prompt": row[0], "seed": row[1], "original": row[2], "key": clip_key(*row)}
        rows.append(named | {"cells": cells})
    knobs = differing(run.recipe for run in runs)
    names = sorted({str(run.recipe.get("backbone", "unknown")) for run in runs})
    toy = " (embedded, of a toy world: no number here compares with the paper's)"
    names = ", ".join(name + toy * (name in WORLDS) for name in names)
    return {
        "runs": [_summary(run, label[run.id], scores) for run in runs],
        "differ": sorted(knobs),
        "knobs": sorted(knobs - {"method", "windows.exponents"}),  # filters beside the method
        "scores": scores,
        "stages": list(STAGES),
        "rows": rows,
        "about": f"{len(runs)} run(s), {len(rows)} row(s) of prompt and seed; backbone {names}",
        "notes": _notes(every, {clip_key(*row) for row in place}),
    }


def _notes(runs: list[Run], keys: set[str]) -> list[str]:
    """Warnings about the table, and broken files that belong to no row."""
    notes = [f"{run.id} has no finished clip." for run in runs if not run.shown]
    for run in runs:
        lost = [file for key, file in run.broken.items() if key not in keys or not run.shown]
        notes += [f"{run.id}/{file} cannot be read." for file in lost]
    clips = [set(run.records) for run in runs if run.shown]
    common = set.intersection(*clips)
    if any(c != common for c in clips):
        notes.append(
            f"The runs do not hold the same clips ({len(common)} are in all of them): "
            "compare them row by row, not by their means."
        )
    devices = sorted({str(r.get("device")) for run in runs for r in run.records.values()})
    if len(devices) > 1:
        notes.append(f"Seconds are from different machines: {'; '.join(devices)}.")
    return notes


def _cell(run: Run, row: Row, scores: list[str], media: Media) -> dict[str, Any]:
    """One run's clip of a row: its video or what is wrong, its scores and seconds."""
    record, key = run.records.get(row), clip_key(*row)
    note = f"failed: {run.failures[row]}" if row in run.failures else None
    if record is None:
        return {"note": f"{run.broken[key]} cannot be read" if key in run.broken else note}
    video = run.folder / "clips" / Path(record["video"]).name
    size = record["height"], record["width"]
    density, steps = _mean((record.get("density") or {}).values())
    return {
        "note": note,
        **_video(video, size, record, media, record["bytes"]),
        "scores": [_short(record["scores"].get(name)) for name in scores],
        "seconds": [_short(record["seconds"].get(stage)) for stage in STAGES],
        "total": _short(generation_seconds(record)),
        "f": density if steps else None,
        "file": f"{run.id}/clips/{video.name}",
        **{k: record.get(k) for k in ("device", "commit", "outcome")},
    }


def _low_knobs(run: Run) -> dict[str, Any]:
    """The fields that decide a run's LR clips; runs with equal ones share them."""
    low = {k: run.recipe.get(k, ADDED_FIELDS.get(k)) for k in (*LOW_FIELDS, "version")}
    own = (k for k in run.recipe if k.startswith("pipeline."))
    brought = {k.removeprefix("pipeline."): run.recipe[k] for k in own}
    return low | {"pipeline": brought or None}


def _low_cell(group: list[Run], differ: set[str], row: Row, media: Media) -> dict[str, Any]:
    """The LR clip of a row, from the first of the runs sharing it that has the file."""
    recipe = _low_knobs(group[0])
    words = [f"LR {'×'.join(map(str, recipe['low']))}"]
    words += [f"{k}={text_of(recipe[k])}" for k in sorted(differ - {"low"})]
    cell: dict[str, Any] = {"run": None, "label": ", ".join(words), "note": None}
    for run in (run for run in group if row in run.records):
        record = run.records[row]
        name = f"{Path(record['video']).stem}.low.mp4"
        video = _video(run.folder / "clips" / name, recipe["low"], record, media)
        cell |= video | {"file": f"{run.id}/clips/{name}"}
        if "src" in video:
            return cell | {"note": None}
    return cell


def _video(
    path: Path, size: Any, record: dict[str, Any], media: Media, full: int | None = None
) -> dict[str, Any]:
    """The address of a video with its size, or a note of what is wrong with it."""
    try:
        with path.open("rb") as file:
            written = file.seek(0, 2)
    except OSError as error:
        return {"note": f"clips/{path.name}: {error.strerror}"}
    if written == 0 or full not in (None, written):
        return {"note": f"clips/{path.name} is half-written ({written} bytes)"}
    known = {k: record[k] for k in ("frames", "fps") if k in record}
    return {**media.addresses(path), "height": size[0], "width": size[1], **known}


def _summary(run: Run, label: str, scores: list[str]) -> dict[str, Any]:
    """A run's row of the table and its recipe; a mean is (value, number of clips)."""
    records = list(run.records.values())
    origin = {k: "; ".join(sorted({str(r.get(k)) for r in records})) for k in ("device", "commit")}
    return {
        "id": run.id,
        "label": label,
        "method": str(run.recipe.get("method", run.id)),
        "clips": len(records),
        "density": _mean(d for r in records for d in (r.get("density") or {}).values()),
        "scores": [_mean(r["scores"].get(name) for r in records) for name in scores],
        "intervals": [_interval(run, name) for name in scores],
        "seconds": [_mean(r["seconds"].get(stage) for r in records) for stage in STAGES],
        "total": _mean(generation_seconds(r) for r in records),
        "recipe": {k: text_of(v) for k, v in run.recipe.items()} | origin,
    }


def _mean(values: Iterable[float | None]) -> tuple[float, int]:
    known = [v for v in values if v is not None]
    return (_short(fmean(known)) if known else 0.0), len(known)


def _interval(run: Run, score: str) -> tuple[float, float, float, int] | None:
    """Mean over prompts, seeds averaged first, its 95 % interval, their number; None below two."""
    of_prompt: dict[Any, list[float]] = {}
    for row, record in run.records.items():
        if (value := record["scores"].get(score)) is not None:
            of_prompt.setdefault((row[0], row[2]), []).append(value)
    d = np.array([fmean(values) for _, values in sorted(of_prompt.items(), key=repr)])
    if len(d) < 2:
        return None
    ends = bootstrap_interval(d, resamples=RESAMPLES)
    return (*(_short(float(x)) for x in (d.mean(), *ends)), len(d))


def labels(runs: list[Run]) -> dict[str, str]:
    """Run id -> the knobs in which these runs differ; the id distinguishes equal ones."""
    words = {run.id: _words(run) for run in runs}
    differ = differing(words.values())
    texts = [", ".join(w[k] for k in w if k in differ) or w["method"] for w in words.values()]
    count, named = Counter(texts), zip(words, texts, strict=True)
    return {i: f"{text} ({i})" if count[text] > 1 else text for i, text in named}


def _words(run: Run) -> dict[str, str]:
    """A run's knobs as texts; windows and sparsity are one of them, solver and order another."""
    recipe = dict(run.recipe)
    words = {"method": str(recipe.pop("method", run.id))}
    if windows := next((r.get("windows") for r in run.records.values()), None):
        words["windows"] = windows + sparsity_suffix(recipe)
    if "solver" in recipe:
        words["solver"] = recipe["solver"] + order_suffix(recipe)
    merged = ("sparsity", "density", "solver", "order")
    rest = {k: v for k, v in recipe.items() if k not in merged and not k.startswith("windows.")}
    return words | {k: f"{k}={text_of(v)}" for k, v in rest.items()}


def differing(knobs: Iterable[dict[str, Any]]) -> set[str]:
    """The keys that have more than one value among those that have them."""
    values = {(k, str(v)) for some in knobs for k, v in some.items()}
    return {k for k, count in Counter(k for k, _ in values).items() if count > 1}


def text_of(value: Any) -> str:
    """A knob's value; [64, 96] is 64x96, fractions in lists have three places."""
    if isinstance(value, list) and value and all(isinstance(x, int) for x in value):
        return "x".join(map(str, value))
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return re.sub(r"(\.\d{3})\d+", r"\1", text) if isinstance(value, list) else text


def _natural(text: str) -> list[Any]:
    """A sort key that puts t_i=8 before t_i=12."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [float(p) if i % 2 else p for i, p in enumerate(parts)]


def _short(value: float | None) -> float | None:
    """Six digits make the page a third smaller; it shows four at most."""
    return None if value is None else float(f"{value:.6g}")
