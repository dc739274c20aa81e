"""The notes below a table: what is held, where the rows come from, what makes them incomparable."""

import json
from pathlib import Path

import pandas as pd
from clips import FIRST_VALUES, Record, Run

from s2flow import metrics
from s2flow.embedded.world import WORLDS

PAPER_NUMBERS = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
SETTING = PAPER_NUMBERS["setting"]
PAPER = "HunyuanVideo 8×H800: "  # begins the name of each column of the paper's
EMBEDDED = tuple(WORLDS)  # backbones of the toy world
VBENCH = (
    *metrics.SIX,
    *("subject_consistency", "dynamic_degree", "object_class", "multiple_objects"),
    *("human_action", "color", "spatial_relationship", "scene", "appearance_style"),
    "temporal_style",
)  # all 16 dimensions


def describe(group: Record) -> str:
    """What all rows of a table share."""
    return (
        f"backbone {group['backbone']}, {group['steps']} steps, "
        f"{group['height']}×{group['width']} (height×width), {group['frames']} frames"
    )


def embedded_note(group: Record) -> list[str]:
    """A warning that the numbers are those of a toy model; empty for a real backbone."""
    if group["backbone"] not in EMBEDDED:
        return []
    return [
        f"Embedded backbone `{group['backbone']}`, a toy model of the package: our columns are its own "
        "and say nothing about the paper's model, whose published numbers stand apart"
    ]


def held_note(held: Record, steps: int | None) -> str:
    """The knobs that a table does not vary."""
    shown = {k: v for k, v in held.items() if v is not None and FIRST_VALUES.get(k) != v}
    if "t_i" in shown:
        shown["t_i"] = f"{shown['t_i']} of {steps}"
    return "held: " + (", ".join(f"{k}={v}" for k, v in shown.items()) or "nothing")


def provenance_notes(rows: dict[str, Run], left_out: int) -> list[str]:
    """Where the rows, by their labels, come from, and why they might not be comparable."""
    used = pd.concat([run.clips for run in rows.values()])
    done = pd.concat([run.done for run in rows.values()])
    known = {k: used[k].dropna() if k in used else pd.Series() for k in ("device", "commit")}
    words = {k: ", ".join(sorted({str(v) for v in x if v})) or "unknown" for k, x in known.items()}
    prompts = len(used.drop_duplicates(["prompt", "original_prompt"]))
    made = f"device {words['device']}; commit {words['commit']}"
    notes = [f"ours: {prompts} prompts, {used['seed'].nunique()} seeds; {made}"]
    notes.append("s: the share that is kept; f: share of query-key pairs really computed")
    if left_out:
        notes.append(f"left out: {left_out} finished clips made with other settings")
    if len({frozenset(run.clip_keys()) for run in rows.values()}) > 1:
        notes.append("CAUTION: rows cover different clips, so their means are not paired")
    if known["device"].nunique() > 1:
        notes.append("CAUTION: several devices, so seconds are not comparable")
    reused = done["low_flow_reused"].dropna() if "low_flow_reused" in done else pd.Series()
    if reused.any():
        why = "their seconds lr, and so total, are what making it once took; compare seconds hr"
        notes.append(f"{int(reused.sum())} of {len(reused)} clips reused an LR flow: {why}")
    if "metrics" in done and done["metrics"].nunique() > 1:
        notes.append(
            "CAUTION: clips were scored by different scorers, versions or weights; "
            "`python -m s2flow.score` over all runs mends that"
        )
    for label, run in rows.items():
        clips, failed = run.clips, len(run.clips) - len(run.done)
        notes += [f"{label}: {failed} clips failed"] if failed else []
        outcomes = clips["outcome"].value_counts() if "outcome" in clips else {}
        bad = ", ".join(sorted(f"{n} {word}" for word, n in outcomes.items() if word != "ok"))
        notes += [f"CAUTION: of the {len(clips)} clips of {label} {bad}"] if bad else []
    return notes


def score_notes(rows: dict[str, Run], scores: list[str]) -> list[str]:
    """What the scores are, and which clips lack them."""
    real = [s for s in VBENCH if s in scores]
    own = ", ".join(s for s in scores if s not in VBENCH) or "none"
    notes = [f"VBench dimensions: {', '.join(real) or 'none'}; our own, not VBench's: {own}"]
    missing = ", ".join(s for s in metrics.SIX if s not in real)
    if missing:
        notes.append(f"Temporal, Visual, Mean need all their dimensions; not scored: {missing}")
    for label, run in rows.items():
        for s in scores:
            scored = len(run.values(f"score_{s}"))
            if 0 < scored < len(run.done):
                notes.append(f"{label}: {s} is over {scored} of {len(run.done)} clips")
    return notes


def paper_note() -> str:
    """What the paper's columns were measured on."""
    s = SETTING
    size = "×".join(map(str, reversed(s["high_resolution"])))
    made = f"{s['backbone']} on {s['gpus']}, {s['steps']} steps, {size}, {s['frames']} frames"
    return (
        f"{PAPER}{made}, {s['prompts']} VBench prompts, as published ({PAPER_NUMBERS['source']})"
    )


def difference_note(reference: str) -> str:
    """What the marks mean."""
    return (
        f"minus {reference}: on the prompts and seeds that both rows have, seeds averaged within the "
        "prompt; 95 % bootstrap intervals over prompts; *: 0 is outside, and 6 prompts or more differ. "
        "Each interval stands alone: of 20 differences that are none, one is marked"
    )
