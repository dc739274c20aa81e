"""Runs of a store as tables, figures and paired differences read them: knobs, and a frame of clips."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from s2flow.metrics import ClipKey, Row
from s2flow.store.recipes import ADDED_FIELDS

GROUP = ("backbone", "steps", "height", "width", "frames")
WINDOW_KNOBS = ("sparsity", "density", "windows")
SOLVER_KNOBS = ("solver", "order")
KNOBS = ("method", *WINDOW_KNOBS, *SOLVER_KNOBS, "t_i")
FIRST_VALUES = {  # of knobs that the first records lack
    k: "none" if v in (None, []) else v
    for k, v in ADDED_FIELDS.items()
    if k not in ("params", "scheduler")  # of one method each
}
OTHER_KNOBS = ("weights", "low", "shift", "guidance", "negative_prompt", "handoff", "noise")
OTHER_KNOBS += ("stencil", "lr_time", "upsample", "brick_low", "brick_high", "coverage_rows")
OTHER_KNOBS += ("attention", "fidelity_reference", *FIRST_VALUES)
READ_WITH = {"shift_high": "t_i", "adain": "handoff", "stages": "handoff"}  # by the same methods
DEFAULTS = {"sparsity": 0.5, "windows": "adaptive", "density": "volume", "solver": "lri"}
DEFAULTS |= {"order": 2, "handoff": "x0", "noise": "fresh"}  # of run.py
CLIP = ("prompt", "original_prompt", "seed")
FAILED = ("failed", "error")

Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """The clips of one recipe.

    knobs: plain values by name; None where one is not recorded, or is ignored by the run.
    clips: a row per clip, with the columns of `s2flow.store.load_records`; done: the finished ones.
    """

    id: str
    knobs: Record
    clips: pd.DataFrame
    done: pd.DataFrame

    def values(self, column: str) -> pd.Series:
        """The numbers of a column over finished clips; empty where there are none."""
        if column not in self.done:
            return pd.Series(dtype=float)
        return pd.to_numeric(self.done[column], errors="coerce").dropna()

    def mean(self, column: str) -> float | None:
        """Mean over the finished clips that have a value."""
        values = self.values(column)
        return float(values.mean()) if len(values) else None

    def clip_keys(self) -> list[ClipKey]:
        """((prompt, original prompt or None), seed) of finished clips.

        An augmented prompt and the entry that it stands for are together one prompt.
        """
        originals = _without_nan(self.done["original_prompt"])
        prompts = zip(self.done["prompt"], originals, strict=True)
        return list(zip(prompts, self.done["seed"].tolist(), strict=True))

    def scores(self) -> dict[ClipKey, Row]:
        """The scores of finished clips, as `metrics.paired_runs` takes them."""
        names = {c: c.removeprefix("score_") for c in self.done if c.startswith("score_")}
        rows = _without_nan(self.done[list(names)].rename(columns=names)).to_dict("records")
        return dict(zip(self.clip_keys(), rows, strict=True))


def _without_nan(table: Any) -> Any:
    return table.astype(object).where(table.notna(), None)


def read_runs(frame: pd.DataFrame) -> list[Run]:
    """The runs of a frame of `load_records`; a clip that is recorded twice counts once.

    A run whose clips were compared with two references (scorer `fidelity`) is two of them.
    """
    columns = (*GROUP, *KNOBS, *OTHER_KNOBS, *CLIP, "variant", "run_id", "status")
    missing = [c for c in dict.fromkeys(columns) if c not in frame]
    frame = frame.reindex(columns=[*frame.columns, *missing])
    frame = frame.drop_duplicates(["run_id", *CLIP])
    reference = frame["fidelity_reference"].astype(object)
    usual = reference.groupby(frame["run_id"]).transform("first")
    runs = []
    for (run_id, _), clips in frame.groupby(
        ["run_id", reference.fillna(usual).fillna("")], sort=False
    ):
        done = clips[~clips["status"].isin(FAILED)]
        first = (done if len(done) else clips).iloc[0]
        knobs = {k: _plain(first[k]) for k in (*GROUP, *KNOBS, *OTHER_KNOBS, "variant")}
        runs.append(Run(str(run_id), _without_ignored(knobs), clips, done))
    return runs


def _without_ignored(r: Record) -> Record:
    """The knobs of a run without those that it ignores, which must not tell equal runs apart.

    Methods other than S2Flow have no windows and no solver, `native` and `bicubic` no hand-off,
    full attention no window shape, the policy `coverage` no sparsity; `order` belongs to the solver
    `lri`, whose order 1 is `euler`.
    """
    r = r | {k: v for k, v in FIRST_VALUES.items() if r[k] in (None, "") and reads(r, k)}
    if r["windows"] == "full":
        r["sparsity"] = 1
    if r["method"] != "s2flow":
        r |= dict.fromkeys((*WINDOW_KNOBS, *SOLVER_KNOBS))
    if r["method"] in ("native", "bicubic"):
        r["t_i"] = None
    if r["sparsity"] == 1:
        r |= {"windows": None, "density": None}
    if r["windows"] in ("coverage", "inward"):
        r |= {"sparsity": None, "density": None}
    if r["solver"] == "euler":
        r |= {"solver": "lri", "order": 1}
    if r["solver"] not in (None, "lri"):
        r["order"] = None
    return r


def reads(r: Mapping[str, Any], knob: str) -> bool:
    """Whether a run's pixels depend on a knob of ADDED_FIELDS.

    Inferred from a knob that the same methods read, since asking the method means loading torch.
    """
    if r["method"] is None:
        return True
    if knob in ("rope", "temperature"):  # of all but `bicubic`, which has no HR forward
        return r["method"] != "bicubic"
    if knob == "input":  # in place of an LR flow
        return r["method"] != "native"
    return knob not in READ_WITH or r[READ_WITH[knob]] is not None


def _plain(value: Any) -> Any:
    """A cell as a plain value: NaN is None, 12.0 is 12, 0.30000000000000004 is 0.3."""
    if isinstance(value, list):
        return tuple(value)
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or value is pd.NA or value != value:
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else round(value, 12)
    return value
