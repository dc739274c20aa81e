"""Temporal, Visual and Mean (the aggregates of Tables 1-4), and paired differences.

    Temporal = mean(flickering, motion smoothness, background consistency, overall consistency)
    Visual   = mean(aesthetic quality, imaging quality)
    Mean     = mean of the six = (4 Temporal + 2 Visual) / 6

The paper does not print these formulas; they reproduce its rows to 1e-4 (`tests/test_paper.py`).
They are means of raw VBench values, not VBench's official total, which needs 16 dimensions. A mean
over fewer dimensions than its name says is never formed: the result is None.

Methods differ by 0.002-0.005, so compare them prompt by prompt (`paired_difference`).
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

TEMPORAL = (
    "temporal_flickering",
    "motion_smoothness",
    "background_consistency",
    "overall_consistency",
)
VISUAL = ("aesthetic_quality", "imaging_quality")
SIX = TEMPORAL + VISUAL

RESAMPLES = 10_000
BATCH = 500  # resamples drawn at once: 4 MB for 946 prompts

Row = Mapping[str, float | None]


def temporal(row: Row) -> float | None:
    """Mean of the four temporal dimensions, each in [0, 1]; None if any is missing."""
    return _mean_of(row, TEMPORAL)


def visual(row: Row) -> float | None:
    """Mean of aesthetic and imaging quality, each in [0, 1]; None if either is missing."""
    return _mean_of(row, VISUAL)


def mean(row: Row) -> float | None:
    """Mean of the six dimensions, each in [0, 1]; None if any is missing."""
    return _mean_of(row, SIX)


def _mean_of(row: Row, names: tuple[str, ...]) -> float | None:
    values = [row.get(name) for name in names]
    if any(_is_missing(v) for v in values):
        return None
    for name, value in zip(names, values, strict=True):
        if value > 1:
            raise ValueError(
                f"{name}={value} is above 1: VBench gives imaging quality on 0-100 per video; "
                "divide by 100 before aggregating"
            )
    return float(sum(values) / len(values))


def _is_missing(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over n prompts, with a confidence interval [low, high] at `level`.

    `dropped` prompts had a score on one side only. The mean is None without pairs, the interval
    is None below two pairs, for one pair says nothing about its own spread.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    dropped: int
    level: float


def paired_difference(
    a: Mapping[Hashable, float | None] | Sequence[float | None],
    b: Mapping[Hashable, float | None] | Sequence[float | None],
    seed: int = 0,
    level: float = 0.95,
) -> PairedDifference:
    """Mean of a - b over prompts, with a percentile bootstrap interval (prompts resampled).

    Two mappings are paired by key, two sequences of one length by position. A prompt that lacks a
    finite score on either side is dropped and counted. Percentile intervals are too narrow for few
    prompts: with n = 10 a nominal 95 % covers about 90 %.

    Raises `ValueError` for sequences of different lengths, or a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level} is no confidence level; give one in (0, 1), such as 0.95")
    pairs = _pairs(a, b)
    d = np.array([x - y for x, y in pairs if not (_is_missing(x) or _is_missing(y))], dtype=float)
    n, dropped = len(d), len(pairs) - len(d)
    if n < 2:
        return PairedDifference(float(d[0]) if n else None, None, None, n, dropped, level)
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [d[rng.integers(0, n, (BATCH, n))].mean(axis=1) for _ in range(RESAMPLES // BATCH)]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return PairedDifference(float(d.mean()), float(low), float(high), n, dropped, level)


def _pairs(a, b) -> list[tuple[float | None, float | None]]:
    if isinstance(a, Mapping) != isinstance(b, Mapping):
        raise ValueError("give two mappings (paired by key) or two sequences (paired by position)")
    if isinstance(a, Mapping):
        return [(a.get(key), b.get(key)) for key in {**a, **b}]
    if len(a) != len(b):
        raise ValueError(f"{len(a)} scores cannot be paired with {len(b)}; give the same prompts")
    return list(zip(a, b, strict=True))
