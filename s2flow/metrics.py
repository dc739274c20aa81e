"""Temporal, Visual and Mean (the aggregates of Tables 1-4), and paired differences of two runs.

    Temporal = mean(flickering, motion smoothness, background consistency, overall consistency)
    Visual   = mean(aesthetic quality, imaging quality)
    Mean     = mean of the six = (4 Temporal + 2 Visual) / 6

The paper does not print these formulas; they reproduce its rows to 1e-4 (`tests/test_paper.py`).
They are means of raw VBench values, not VBench's official total, which needs 16 dimensions. A mean
over fewer dimensions than its name says is never formed: the result is None. Deviation: VBench
weights the videos of background consistency by their frames; here every clip counts once, which is
the same number wherever all clips have one length, as in each table.

Methods differ by 0.002-0.005, less than prompts do, so runs are compared prompt by prompt:

    d_p = mean over shared seeds of a  -  mean over the same seeds of b,        d = mean over p of d_p

Prompts are what is resampled. Two seeds of a prompt share whatever is easy or hard about it: counted as
independent, 64 prompts of 4 seeds would look like 256, and an interval half as wide as it must be.
"""

import functools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

TEMPORAL = (
    "temporal_flickering",
    "motion_smoothness",
    "background_consistency",
    "overall_consistency",
)
VISUAL = ("aesthetic_quality", "imaging_quality")
SIX = TEMPORAL + VISUAL
PARTS = {"temporal": TEMPORAL, "visual": VISUAL, "mean": SIX}

RESAMPLES = 10_000
MANY = 2000  # prompts that differ, from which on the mean of a resample is normal
BATCH = 500  # resamples drawn at once: 4 MB for 946 prompts
ROUNDING = 1e-12  # differences below it are ties: means over seeds are rounded

Row = Mapping[str, float | None]
ClipKey = tuple[Hashable, int]  # prompt, seed


def _mean_of(names: tuple[str, ...], row: Row) -> float | None:
    """Mean of these dimensions, each in [0, 1]; None if any is missing."""
    values = [row.get(name) for name in names]
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    for name, value in zip(names, values, strict=True):
        _check_scale(name, value)
    return float(sum(values) / len(values))


def _check_scale(name: str, value: float) -> None:
    if value > 1:
        raise ValueError(
            f"{name}={value} is above 1: VBench gives imaging quality on 0-100 per video; "
            "divide by 100 before aggregating"
        )


AGGREGATES = {name: functools.partial(_mean_of, parts) for name, parts in PARTS.items()}
temporal, visual, mean = AGGREGATES.values()


# -- paired differences -------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over n prompts, with a confidence interval [low, high] at `level`.

    dropped: prompts without a seed that has a score on both sides. wins: the share of the n where a is
    higher, a tie counting half. clips: pairs of clips behind the n. Mean and wins are None without
    pairs, the interval is None below two prompts.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    dropped: int
    level: float
    wins: float | None
    ties: int
    clips: int

    @property
    def is_real(self) -> bool:
        """Whether the interval leaves out 0, and enough prompts differ for that to mean anything.

        Enough: so many that all of one sign are rarer than 1 - level by chance, 6 at 95 %.
        """
        if self.low is None or 2.0 ** (1 - (self.n - self.ties)) > 1 - self.level:
            return False
        return self.low > 0 or self.high < 0


def paired_runs(
    a: Mapping[ClipKey, Row],
    b: Mapping[ClipKey, Row],
    names: Iterable[str],
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, PairedDifference]:
    """Run a minus run b for each named score, from the scores of their clips by (prompt, seed).

    "temporal", "visual" and "mean" are formed per clip, where all their dimensions are there.
    Raises `ValueError` as `mean` and `paired_difference` do.
    """
    clips = list({**a, **b})
    of, sides = _places(clips), [_Columns([run.get(c, {}) for c in clips]) for run in (a, b)]
    return {name: _paired(of, *(side[name] for side in sides), seed, level) for name in names}


class _Columns(dict):
    """Scores of many clips by name, each (clips,) and NaN where there is none; made when asked for."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __missing__(self, name: str) -> np.ndarray:
        if name in PARTS:
            parts = {part: self[part] for part in PARTS[name]}
            self[name] = np.mean(list(parts.values()), axis=0)
            there = np.isfinite(self[name])
            for part, values in parts.items():
                _check_scale(part, values[there].max(initial=0))
        else:
            self[name] = np.array([row.get(name) for row in self.rows], dtype=float)
        return self[name]


def paired_clips(
    a: Mapping[ClipKey, float | None],
    b: Mapping[ClipKey, float | None],
    seed: int = 0,
    level: float = 0.95,
) -> PairedDifference:
    """Mean of a - b over prompts, of scores by (prompt, seed), seeds averaged within the prompt.

    Only seeds that have a finite score on both sides enter. Raises as `paired_difference` does.
    """
    clips = list({**a, **b})
    x, y = (np.array([run.get(clip) for clip in clips], dtype=float) for run in (a, b))
    return _paired(_places(clips), x, y, seed, level)


def paired_difference(
    a: Mapping[Hashable, float | None] | Sequence[float | None],
    b: Mapping[Hashable, float | None] | Sequence[float | None],
    seed: int = 0,
    level: float = 0.95,
) -> PairedDifference:
    """Mean of a - b over prompts, with a bootstrap interval (`bootstrap_interval`).

    Two mappings are paired by key, two sequences of one length by position. A prompt that lacks a
    finite score on either side is dropped and counted.

    Raises `ValueError` for sequences of different lengths, or a level outside (0, 1).
    """
    if isinstance(a, Mapping) != isinstance(b, Mapping):
        raise ValueError("give two mappings (paired by key) or two sequences (paired by position)")
    if isinstance(a, Mapping):
        keys = sorted({**a, **b}, key=repr)
        a, b = ([run.get(key) for key in keys] for run in (a, b))
    if len(a) != len(b):
        raise ValueError(f"{len(a)} scores cannot be paired with {len(b)}; give the same prompts")
    x, y = (np.array(values, dtype=float) for values in (a, b))
    return _paired(np.arange(len(x)), x, y, seed, level)


def _places(clips: Sequence[ClipKey]) -> np.ndarray:
    """The number of each clip's prompt, in one order whoever comes first: resamples depend on it."""
    order = sorted({prompt for prompt, _ in clips}, key=repr)
    number = {prompt: i for i, prompt in enumerate(order)}
    return np.array([number[prompt] for prompt, _ in clips], dtype=int)


def _paired(
    of: np.ndarray, x: np.ndarray, y: np.ndarray, seed: int, level: float
) -> PairedDifference:
    """x - y of clips, NaN where there is no score, averaged over the clips of a prompt `of`."""
    if not 0 < level < 1:
        raise ValueError(f"level={level} is no confidence level; give one in (0, 1), such as 0.95")
    both = np.isfinite(x) & np.isfinite(y)
    prompts = len(np.unique(of))
    count = np.bincount(of[both], minlength=prompts)
    there = count > 0
    mine, theirs = (np.bincount(of[both], v[both], prompts)[there] / count[there] for v in (x, y))
    d = mine - theirs
    d[np.abs(d) < ROUNDING] = 0
    n, dropped, clips = len(d), int((~there).sum()), int(both.sum())
    if n == 0:
        return PairedDifference(None, None, None, 0, dropped, level, None, 0, 0)
    low, high = map(float, bootstrap_interval(d, level, seed)) if n > 1 else (None, None)
    wins, ties = float((np.sign(d).mean() + 1) / 2), int((d == 0).sum())
    return PairedDifference(float(d.mean()), low, high, n, dropped, level, wins, ties, clips)


def bootstrap_interval(
    d: np.ndarray, level: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap interval of the mean: d (..., n) with n >= 2 -> low and high, both (...).

    Of each resample, with mean m* and variance s*^2 where d has m and s^2 (all over n),

        t* = (m* - m) / r*,      r*^2 = s*^2 + s^2 / n,      r^2 = s^2 + s^2 / n

    and the two ends are the outer ones of two intervals, q being quantiles at (1 -+ level) / 2:

        bootstrap-t   [m - r q_hi(t*), m - r q_lo(t*)]      follows skew; too narrow if few d differ
        percentile    [q_lo(m*), q_hi(m*)]                  the other way round

    Deviation from the textbook (Efron and Tibshirani 1993, chapter 12), where r = s: a resample of
    equal values, common where most prompts tie, then has no spread and an infinite t*.

    Coverage of the nominal 95 %, measured by `tests/test_metrics.py` (3,000 draws each, 2,000
    resamples; of -1/0/+1 the probabilities):

        n     normal   exponential   .1 .5 .4   .1 .7 .2   3 seeds   3 seeds, -1/0/+1
        16     95.3        92.9        96.9       93.8       94.3          92.9
        64     94.5        95.6        95.5       95.1       94.9          94.6

    and 97.7, 95.6 for no difference between runs that rarely differ (.02 .96 .02, .05 .90 .05; n = 64),
    of which bootstrap-t alone covers about 79 and 90. On the same draws of 16, percentile intervals
    alone cover 93, 88, 93, 91, 92, 91.

    Where it fails: under 16 prompts (8: 94, 91, 97, 82, 94, 90), with very long tails, and where so few
    prompts differ that a sample misses a kind (.05 .85 .1: 81 at 16; 0 .95 .05: 56). All prompts alike
    give an interval of no width.

    From MANY prompts on that differ the normal interval m -+ z r / sqrt(n) stands for it, to which both
    tend: resampling would take minutes for a table of ten thousand.
    """
    n = d.shape[-1]
    m = d.mean(axis=-1, keepdims=True)
    c = d - m
    variance = (c * c).mean(axis=-1, keepdims=True)
    if not c.any():
        return m[..., 0], m[..., 0]
    if min(np.count_nonzero(d, axis=-1).flat, default=0) >= MANY:
        half = NormalDist().inv_cdf((1 + level) / 2) * np.sqrt(variance * (1 + 1 / n))
        half = half[..., 0] / np.sqrt(n)
        return m[..., 0] - half, m[..., 0] + half
    rng, shifts, t = np.random.default_rng(seed), [], []
    for start in range(0, resamples, BATCH):
        size = min(BATCH, resamples - start)
        drawn = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).T / n
        shift = c @ counts
        spread = np.maximum(c * c @ counts - shift**2, 0) + variance / n
        shifts.append(shift)
        t.append(np.divide(shift, np.sqrt(spread), where=spread > 0, out=np.zeros_like(shift)))
    r, tails = np.sqrt(variance * (1 + 1 / n))[..., 0], [(1 - level) / 2, (1 + level) / 2]
    q = np.quantile(np.concatenate(t, axis=-1), tails, axis=-1)
    p = np.quantile(np.concatenate(shifts, axis=-1), tails, axis=-1)
    return m[..., 0] + np.minimum(p[0], -r * q[1]), m[..., 0] + np.maximum(p[1], -r * q[0])
