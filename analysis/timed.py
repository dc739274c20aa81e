"""Seconds of Figure 6: of recorded clips in blocks of 10 steps and by stage, the paper's, the model's.

Blocks are lists of ("LR" or "HR", seconds) from noise to video; stages are dicts by names of STAGES.
"""

import json
from collections import defaultdict
from statistics import fmean
from typing import Any

from stored import PAPER_NUMBERS

from s2flow.costs.clock import rates_of
from s2flow.costs.paper import READINGS, PaperClock, figure6
from s2flow.costs.yours import model
from s2flow.store.recipes import LOW_FIELDS
from s2flow.windows import fraction_of_volume

SETTING = PAPER_NUMBERS["setting"]
STAGES = {"LR flow": ["lr"], "plan": ["plan"], "hand-off": ["handoff"], "HR flow": ["hr"]}
STAGES |= {"decode": ["decode"], "write": ["write"], "other": ["text", "preview", "diagnostics"]}
Record = dict[str, Any]
Blocks = list[tuple[str, float]]


def is_figure6(recipe: Record) -> bool:
    """Native HR, or S2Flow, at the paper's steps, t_i, sparsity and order."""
    names = ("steps",) if recipe["method"] == "native" else ("steps", "t_i", "sparsity", "order")
    windows = (recipe.get("windows") or {}).get("name")
    fits = (recipe["method"], windows) in (("native", None), ("s2flow", "adaptive"))
    return fits and all(recipe.get(k) == SETTING[k] for k in names)


def machine(r: Record) -> str:
    """Whose seconds share an axis, in words."""
    size = "×".join(map(str, r["recipe"]["high"]))
    on = f"{r['device']}, threads {r.get('threads')}, batch {r.get('batch')}"
    return f"{r['recipe']['backbone']}, {size}, {r['recipe']['frames']} frames\n{on}"


def timed_runs(by_run: dict[str, list[Record]]) -> dict[str, dict[str, list[Record]]]:
    """Machine -> run id -> its records that have the seconds of every step."""
    timed: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for run, records in by_run.items():
        for r in records:
            if r.get("step_seconds") and is_figure6(r["recipe"]):
                timed[machine(r)][run].append(r)
    return timed


def density(records: list[Record]) -> float:
    """The share f of query-key pairs that a run really computed."""
    return fmean(fmean(r["density"].values()) for r in records)


def labelled(by_run: dict[str, list[Record]]) -> dict[str, list[Record]]:
    """Runs by method and, of S2Flow, f; native first, then by falling f; by run id where two agree."""
    runs: dict[str, list[Record]] = {}
    for run, records in sorted(by_run.items(), key=lambda item: -density(item[1])):
        method = records[0]["recipe"]["method"]
        label = method if method == "native" else f"{method}, f = {density(records):.3g}"
        runs[f"{label} ({run})" if label in runs else label] = records
    return runs


def in_tens(seconds: dict[str, float]) -> list[float]:
    """Seconds by steps remaining -> sums over blocks of 10, from noise to video."""
    steps = [seconds[n] for n in sorted(seconds, key=int, reverse=True)]
    return [sum(steps[i : i + 10]) for i in range(0, len(steps), 10)]


def low_key(r: Record) -> str:
    """Clips that share an LR flow."""
    knobs = (r["recipe"].get(k) for k in (*LOW_FIELDS, "brick_low", "coverage_rows"))
    return json.dumps([r["prompt"], r["seed"], *knobs])


def flow_blocks(records: list[Record], others: list[Record]) -> Blocks:
    """("LR" or "HR", seconds) of every block of 10 steps, mean over clips.

    An LR flow that was reused was timed where it was made: by one of `others`.
    """
    made = {low_key(r): r["step_seconds"]["lr"] for r in others if "lr" in r["step_seconds"]}
    low = [in_tens(made[low_key(r)]) for r in records if low_key(r) in made]
    if records[0]["recipe"]["method"] == "native":
        low = []
    sides = {"LR": low, "HR": [in_tens(r["step_seconds"]["hr"]) for r in records]}
    return [(side, fmean(b)) for side, bs in sides.items() for b in zip(*bs, strict=True)]


def paper_rows(clock: PaperClock) -> list[tuple[str, Blocks]]:
    """(label, blocks) of the paper's clips: as published, and by the runtime model."""
    low, native, *ours = figure6(clock)
    N, t_i = SETTING["steps"] // 10, SETTING["t_i"] // 10
    steps = {"published": "reported_seconds", "model": "predicted_seconds"}
    rows = [(f"native, {word}", [("HR", native[key])] * N) for word, key in steps.items()]
    cascade = [("LR", low["reported_seconds"])] * N
    high = {"s2flow, published": ours[0]["reported_seconds"]}
    high |= {f"s2flow, model f = {row['f']:g}": row["predicted_seconds"] for row in ours}
    return rows + [(label, cascade + [("HR", s)] * t_i) for label, s in high.items()]


def stage_seconds(records: list[Record]) -> dict[str, float]:
    """Mean seconds of each stage that a run has."""
    mean = {k: fmean(r["seconds"].get(k, 0) for r in records) for k in records[0]["seconds"]}
    stages = {name: sum(mean.get(k, 0) for k in keys) for name, keys in STAGES.items()}
    return {name: s for name, s in stages.items() if s > 0}


def model_stages(clock: PaperClock) -> dict[str, dict[str, float]]:
    """The same of the runtime model, of native and both readings of the sparsity."""
    rate = clock.utilisation(clock.low_seconds, clock.low.flops())
    yours = model("hunyuan", "H800", rates_of("H800", tflops=rate), clock.gpus)
    names = {keys[0]: name for name, keys in STAGES.items()}
    whole = {names[row["stage"]]: row["seconds"] for row in yours.stages()}
    steps, t_i = yours.recipe.steps / 10, yours.recipe.t_i / 10
    native = {"HR flow": steps * yours.ten_steps(yours.costs.high)}
    stages = {"native": {k: whole[k] for k in ("decode", "other")} | native}
    for reading in READINGS:
        f = fraction_of_volume(yours.recipe.sparsity, reading)
        stages[f"s2flow, f = {f:g}"] = whole | {
            "HR flow": t_i * yours.ten_steps(yours.costs.high, f)
        }
    return stages
