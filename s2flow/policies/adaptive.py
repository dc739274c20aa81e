"""LRG-WinAttn: per step, layer and head the candidate that covers most LR attention (Eq. 9).

    w* = argmax_w r(w),    r(w) of Eq. 8 from the LR flow, w among boxes of equal volume f

`windows=cubes` and `windows=temporal` are this policy with one candidate.
"""

from torch import Tensor

from s2flow.plan import Plan
from s2flow.policies.base import LR, Case, Policy, check_candidates, spelt, static
from s2flow.windows import CUBE, DEFAULT_EXPONENTS, candidates, choose, to_grid

READS, BY_VOLUME, OPTIONS, IGNORES = LR, True, ("exponents",), frozenset()
USUAL = DEFAULT_EXPONENTS
PRESETS = {(CUBE,): "cubes", ((0, 1 / 2, 1 / 2),): "temporal"}
check = check_candidates


def label(policy: Policy) -> str:
    """Its preset, or its exponents spelt out."""
    return PRESETS.get(policy.exponents) or spelt(policy)


def decide(policy: Policy, case: Case, coverage: Tensor) -> Plan:
    """See the module."""
    every = candidates(case.f, policy.exponents, case.low_grid)
    boxes = choose(coverage.float(), every)  # (Eq. 9)
    boxes = to_grid(boxes, case.low_grid, case.tokens, case.brick, case.f)
    return static(policy, case, boxes, coverage)
