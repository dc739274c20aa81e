"""How a claim of the paper is decided: rules, margins fixed beforehand, verdicts.
 An interval [low, high] of 95 % (s2flow.metrics: paired over prompts, seeds averaged within the
prompt) meets a rule with a margin m > 0, the smallest effect that counts (`above`, `below`) or the
largest loss that is none (`no loss`, `drops`, `alike`), or with a threshold m (`over`, `under`):

    rule       is claimed of a - b   confirmed             refuted             else undecided
    above      a is better           low > 0, high >= m    high < m
    below      a is less             high < 0, low <= -m   low > -m
    no loss    a loses nothing       low > -m              high < -m
    drops      a loses much          high < -m             low > -m
    alike      a is as b             -m < low, high < m    low > m or high < -m
    over       the value itself      low > m               high < m
    under                            high < m              low > m

`above` and `below` are confirmed only where six prompts or more differ; a claim without its prompts
and seeds is undecided. Each stands alone: of twenty false claims about one is confirmed by chance.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from s2flow.metrics import ClipKey, paired_clips

CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"
WORDS = {
    "above": "refuted if all of the interval is below +{m:g}, else confirmed if it is above 0",
    "below": "refuted if all of the interval is above −{m:g}, else confirmed if it is below 0",
    "no loss": "confirmed if the interval is above −{m:g}, refuted if below",
    "drops": "confirmed if the interval is below −{m:g}, refuted if above",
    "alike": "confirmed if the interval is within ±{m:g}, refuted if outside",
    "over": "confirmed if the interval is above {m:g}, refuted if below",
    "under": "confirmed if the interval is below {m:g}, refuted if above",
}
LIST = yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text(encoding="utf-8"))

Values = Mapping[ClipKey, float | None]


@dataclass(frozen=True)
class Measure:
    """A quantity of a clip's scores on both kinds of backbone; vbench: None if it has no such."""

    own: str
    vbench: str | None
    gain: tuple[float, float]  # own, VBench
    loss: tuple[float, float]


@dataclass(frozen=True)
class Claim:
    """a, b: names of RUNS; measure: of the scores, or a word that claims.py reads from records."""

    source: str
    sentence: str
    rule: str
    a: str
    measure: Measure | str
    b: str | None = None
    margin: float | None = None
    prompts: int = 64
    seeds: int = 3
    note: str = ""

    @property
    def sides(self) -> list[str]:
        """The runs that it reads."""
        return [s for s in (self.a, self.b) if s is not None]


RUNS = {name: tuple(words) for name, words in LIST["runs"].items()}
MEASURES = {name: Measure(**fields) for name, fields in LIST["measures"].items()}
CLAIMS = [
    Claim(**(fields | {"measure": MEASURES.get(fields["measure"], fields["measure"])}))
    for fields in LIST["claims"]
]


@dataclass(frozen=True)
class Decision:
    """An estimate with its interval, what is behind it, and what follows; why: of an undecided one."""

    verdict: str
    why: str
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    prompts: int = 0
    clips: int = 0  # pairs of clips, for a difference

    def rounded(self) -> dict[str, Any]:
        """For JSON."""
        of = asdict(self)
        return {k: round(x, 5) if isinstance(x, float) else x for k, x in of.items()}


def judge(rule: str, low: float, high: float, m: float, real: bool = True) -> str:
    """The table above. real: at least six prompts differ; matters to `above` and `below`.

    Raises `ValueError` for an unknown rule, or an interval that is none.
    """
    if rule not in WORDS or not low <= high:
        raise ValueError(f"rule {rule!r} on [{low}, {high}]; rules are {', '.join(WORDS)}")
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
) -> Decision:
    """A claim on a - b, or on a itself (b None), from values by (prompt, seed).

    Undecided unless so many prompts have so many seeds (on both sides).
    """
    reference = dict.fromkeys(a, 0.0) if b is None else b
    d = paired_clips(a, reference)
    behind = (d.mean, d.low, d.high, d.n, d.clips)
    return _decided(rule, margin, a, reference, prompts, seeds, behind, d.is_real)


def decide_share(rule: str, threshold: float, a: Values, prompts: int, seeds: int) -> Decision:
    """A claim on a share of clips, `over` or `under`: Wilson's interval with prompts as the witnesses.

    A bootstrap of clips that all ended alike has no width; Wilson's has. Seeds of a prompt count as
    one witness, so the interval is never too narrow for agreeing seeds.
    """
    by_prompt: dict[Any, list[float]] = {}
    for (prompt, _), value in a.items():
        if value is not None:
            by_prompt.setdefault(prompt, []).append(value)
    if not by_prompt:
        return Decision(UNDECIDED, "no clips")
    p, n = fmean(map(fmean, by_prompt.values())), len(by_prompt)
    behind = (p, *wilson(p, n), n, sum(map(len, by_prompt.values())))
    return _decided(rule, threshold, a, a, prompts, seeds, behind)


def _decided(
    rule: str,
    margin: float,
    a: Values,
    b: Values,
    prompts: int,
    seeds: int,
    behind: tuple,
    real: bool = True,
) -> Decision:
    """behind: estimate, low, high, prompts, clips."""
    given = (prompt for prompt, s in a if None not in (a[prompt, s], b.get((prompt, s))))
    whole = sum(n >= seeds for n in Counter(given).values())
    if whole < prompts:
        why = f"{whole} of the {prompts} prompts have {seeds} seed{'s' * (seeds > 1)}"
        return Decision(UNDECIDED, why, *behind)
    if behind[1] is None:
        return Decision(UNDECIDED, "one prompt has no interval", *behind)
    verdict = judge(rule, *behind[1:3], margin, real)
    return Decision(verdict, "interval too wide" * (verdict == UNDECIDED), *behind)


def wilson(p: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share p among n witnesses (Wilson 1927)."""
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(center - half, 0.0), min(center + half, 1.0)
