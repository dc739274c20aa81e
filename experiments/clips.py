"""Finished clips of every run as plain rows, for the tables and for paired differences.

A row is a dict: what `s2flow.store.load_records` gives, with the knobs that a run ignores blanked.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from s2flow.metrics import ClipKey, Row
from s2flow.store.recipes import ADDED_FIELDS

if TYPE_CHECKING:
    from pandas import DataFrame, Series

GROUP = ("backbone", "steps", "height", "width", "frames")
WINDOW_KNOBS = ("sparsity", "density", "windows")
SOLVER_KNOBS = ("solver", "order")
KNOBS = ("method", *WINDOW_KNOBS, *SOLVER_KNOBS, "t_i")
OTHER_KNOBS = ("weights", "low", "shift", "guidance", "negative_prompt", "handoff", "noise")
OTHER_KNOBS += ("stencil", "lr_time", "upsample", "brick_low", "brick_high", "coverage_rows")
OTHER_KNOBS += ("attention", "fidelity_reference")  # all held too, where they are recorded
USUAL = {k: "none" if v in (None, []) else v for k, v in ADDED_FIELDS.items() if k != "params"}
OTHER_KNOBS += tuple(USUAL)
BESIDE = dict.fromkeys(("rope", "temperature", "shift_high"), "t_i")
BESIDE |= dict.fromkeys(("adain", "stages"), "handoff")
READ = (*KNOBS, *USUAL, "handoff")  # what decides which of the others count
CLIP = ("prompt", "original_prompt", "seed")
FAILED = ("failed", "error")

Record = dict[str, Any]


def read_records(frame: "DataFrame") -> list[Record]:
    """One dict per clip, None where a column or value is missing, and ignored knobs blanked.

    A knob that a run ignores must not tell equal runs apart: methods other than S2Flow have no
    windows and no solver, `native` and `bicubic` no hand-off, full attention no window shape,
    the window policy `coverage` no sparsity, `order` belongs to the solver `lri`, whose order 1
    is `euler`.
    """
    seen, records, blanked = set(), [], {}
    names = [str(name) for name in frame.columns]
    columns = [_plain_column(frame[name]) for name in frame.columns]
    lacking = {*GROUP, *KNOBS, *OTHER_KNOBS, *CLIP, "run_id", "status"} - set(names)
    names, columns = [*names, *sorted(lacking)], [*columns, *[[None] * len(frame)] * len(lacking)]
    for cells in zip(*columns, strict=True):
        r = dict(zip(names, cells, strict=True))  # as small as can be: there may be many
        knobs = tuple(r[k] for k in READ)
        if knobs not in blanked:  # the clips of a run have them in common
            counted = _without_ignored(dict(zip(READ, knobs, strict=True)))
            blanked[knobs] = [(k, v) for k, v in counted.items() if v is not r[k]]
        for name, value in blanked[knobs]:
            r[name] = value
        key = tuple(r[k] for k in ("run_id", *CLIP))
        unnamed = None in (r["run_id"], r["prompt"], r["seed"])
        if unnamed or key not in seen:
            records.append(r)
        seen.add(key)
    return records


def _without_ignored(r: Record) -> Record:
    """The knobs of a row as they count; see `read_records`."""
    r |= {k: v for k, v in USUAL.items() if r[k] in (None, "") and _reads(r, k)}
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


def _reads(r: Record, knob: str) -> bool:
    """Whether a clip's pixels depend on a knob of ADDED_FIELDS.

    Told from the knob that a method always has beside it, since asking the method means loading torch.
    """
    return r["method"] is None or knob not in BESIDE or r[BESIDE[knob]] is not None


def _plain_column(column: "Series") -> list[Any]:
    """The cells of a column as plain values, each different one made once."""
    if column.isna().all():
        return [None] * len(column)
    if column.dtype == object:  # where True and 1, or lists, may stand side by side
        return [_plain(value) for value in column.tolist()]
    codes, values = column.factorize()
    plain = np.empty(len(values) + 1, dtype=object)  # the last one, None, is where nothing is
    for i, value in enumerate(values):
        plain[i] = _plain(value)
    return plain[codes].tolist()


def _plain(value: Any) -> Any:
    """A pandas cell as a plain value: NaN is None, 12.0 is 12, 0.30000000000000004 is 0.3."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return int(value) if value.is_integer() else round(value, 12)
    return tuple(value) if isinstance(value, list) else value


def is_done(record: Record) -> bool:
    """Whether the clip was finished, rather than recorded as failed."""
    return record["status"] not in FAILED


def scores_by_clip(records: Iterable[Record]) -> dict[ClipKey, Row]:
    """The scores of finished clips by (prompt, seed), as `metrics.paired_runs` takes them.

    An augmented prompt and the entry that it stands for are together one prompt.
    """
    done = [r for r in records if is_done(r)]
    names = {k: k.removeprefix("score_") for k in score_columns(done)}
    return {
        ((r["prompt"], r["original_prompt"]), r["seed"]): {
            name: r[k] for k, name in names.items() if k in r
        }
        for r in done
    }


def score_columns(records: list[Record]) -> list[str]:
    """The scores that records are asked for; those of `read_records` have their columns in common."""
    kinds = {len(r): r for r in records}
    return list(dict.fromkeys(k for r in kinds.values() for k in r if k.startswith("score_")))
