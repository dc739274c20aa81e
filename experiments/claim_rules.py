"""How a claim of the paper is decided: rules, margins fixed beforehand, verdicts.

An interval [low, high] of 95 % (s2flow.metrics: paired over prompts, seeds averaged within the prompt)
meets a rule with a margin m > 0, the smallest effect that counts (`above`, `below`) or the largest loss
that is none (`no loss`, `drops`, `alike`), or with a threshold m (`over`, `under`):

    rule       is claimed of a - b   confirmed             refuted             else undecided
    above      a is better           low > 0, high >= m    high < m
    below      a is less             high < 0, low <= -m   low > -m
    no loss    a loses nothing       low > -m              high < -m
    drops      a loses much          high < -m             low > -m
    alike      a is as b             -m < low, high < m    low > m or high < -m
    over       the value itself      low > m               high < m
    under                            high < m              low > m

`above` and `below` are confirmed only where at least six prompts differ (PairedDifference.is_real).
So a gain that is certainly smaller than what counts refutes a claim of gain, even one that is
certainly there, and a wide interval decides nothing. A claim without its prompts and seeds is
undecided, whatever its interval.

Each claim stands alone: of twenty that are false, about one is confirmed by chance.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from s2flow.metrics import ClipKey, PairedDifference, paired_clips

CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"
RULES = ("above", "below", "no loss", "drops", "alike", "over", "under")
WORDS = {
    "above": "refuted if all of the interval is below +{m:g}, else confirmed if it is above 0",
    "below": "refuted if all of the interval is above −{m:g}, else confirmed if it is below 0",
    "no loss": "confirmed if the interval is above −{m:g}, refuted if below",
    "drops": "confirmed if the interval is below −{m:g}, refuted if above",
    "alike": "confirmed if the interval is within ±{m:g}, refuted if outside",
    "over": "confirmed if the interval is above {m:g}, refuted if below",
    "under": "confirmed if the interval is below {m:g}, refuted if above",
}

Values = Mapping[ClipKey, float | None]


@dataclass(frozen=True)
class Found:
    """An estimate with its interval, what is behind it, and what follows."""

    verdict: str
    why: str  # of an undecided one
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    prompts: int = 0
    clips: int = 0

    def rounded(self) -> dict[str, Any]:
        """For JSON."""
        numbers = {k: getattr(self, k) for k in ("estimate", "low", "high")}
        numbers = {k: None if v is None else round(v, 5) for k, v in numbers.items()}
        return {"verdict": self.verdict, "why": self.why, **numbers, **self.behind()}

    def behind(self) -> dict[str, int]:
        """Prompts and clips (pairs of clips, for a difference)."""
        return {"prompts": self.prompts, "clips": self.clips}


def judge(rule: str, low: float, high: float, m: float, real: bool = True) -> str:
    """The table above. real: at least six prompts differ; matters to `above` and `below`.

    Raises `ValueError` for an unknown rule, or an interval that is none.
    """
    if rule not in RULES or not low <= high:
        raise ValueError(f"rule {rule!r} on [{low}, {high}]; rules are {', '.join(RULES)}")
    holds, fails = {
        "above": (low > 0 and high >= m and real, high < m),
        "below": (high < 0 and low <= -m and real, low > -m),
        "no loss": (low > -m, high < -m),
        "drops": (high < -m, low > -m),
        "alike": (-m < low and high < m, low > m or high < -m),
        "over": (low > m, high < m),
        "under": (high < m, low > m),
    }[rule]
    return CONFIRMED if holds else REFUTED if fails else UNDECIDED


def decide(
    rule: str, margin: float, a: Values, b: Values | None, prompts: int, seeds: int
) -> Found:
    """A claim on a - b, or on a itself (b None), from values by (prompt, seed).

    Undecided unless so many prompts have so many seeds (on both sides).
    """
    reference = dict.fromkeys(a, 0.0) if b is None else b
    d: PairedDifference = paired_clips(a, reference)
    whole = complete_prompts(a, reference, seeds)
    behind = (d.mean, d.low, d.high, d.n, d.clips)
    if whole < prompts:
        why = f"{whole} of the {prompts} prompts have {seeds} seed{'s' * (seeds > 1)}"
        return Found(UNDECIDED, why, *behind)
    if d.low is None:
        return Found(UNDECIDED, "one prompt has no interval", *behind)
    verdict = judge(rule, d.low, d.high, margin, d.is_real)
    return Found(verdict, "interval too wide" if verdict == UNDECIDED else "", *behind)


def decide_share(rule: str, threshold: float, a: Values, prompts: int, seeds: int) -> Found:
    """A claim on a share of clips, `over` or `under`: Wilson's interval with prompts as the witnesses.

    A bootstrap of clips that all ended alike has no width; Wilson's has. Seeds of a prompt count as
    one witness, so the interval is never too narrow for agreeing seeds.
    """
    by_prompt: dict[Any, list[float]] = {}
    for (prompt, _), value in a.items():
        if value is not None:
            by_prompt.setdefault(prompt, []).append(value)
    n, clips = len(by_prompt), sum(map(len, by_prompt.values()))
    if n == 0:
        return Found(UNDECIDED, "no clips")
    p = sum(sum(v) / len(v) for v in by_prompt.values()) / n
    low, high = wilson(p, n)
    whole = complete_prompts(a, a, seeds)
    if whole < prompts:
        why = f"{whole} of the {prompts} prompts have {seeds} seeds"
        return Found(UNDECIDED, why, p, low, high, n, clips)
    verdict = judge(rule, low, high, threshold)
    return Found(
        verdict, "interval too wide" if verdict == UNDECIDED else "", p, low, high, n, clips
    )


def complete_prompts(a: Values, b: Values, seeds: int) -> int:
    """Prompts with at least so many seeds that have a value on both sides."""
    shared = Counter(
        prompt for prompt, s in a if a[prompt, s] is not None and b.get((prompt, s)) is not None
    )
    return sum(n >= seeds for n in shared.values())


def wilson(p: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share p among n witnesses (Wilson 1927)."""
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(center - half, 0.0), min(center + half, 1.0)
