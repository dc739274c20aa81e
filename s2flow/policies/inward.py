"""Each query sees the training resolution's extent, shifted inward at the borders.

    w = min(ceil(n_lr / b), g)      per axis: the LR grid's tokens in whole HR bricks

Deviation: this is the window half of FreeSwim (arXiv 2511.14712). Its second path (a forward with full
attention, whose cross-attention overrides the windowed one's) is left out, so it is not called by that
name.
"""

import math

from torch import Tensor

from s2flow.grid import Box, brick_grid, realised_density
from s2flow.plan import Plan
from s2flow.policies.base import NOTHING, Case, Policy, static

READS, BY_VOLUME, OPTIONS = NOTHING, False, ()
IGNORES = frozenset({"sparsity", "density", "brick_low", "coverage_rows"})


def density(policy: Policy, case: Case) -> float:
    """That of its one box."""
    box = inward_box(case.low_tokens, case.tokens, case.brick)
    return realised_density(case.tokens, case.brick, box)


def decide(policy: Policy, case: Case, coverage: Tensor) -> Plan:
    """See the module."""
    box = inward_box(case.low_tokens, case.tokens, case.brick)
    return static(policy, case, box, coverage)


def inward_box(low_tokens: Box, tokens: Box, brick: Box) -> Box:
    """The LR grid's extent in whole HR bricks, where it fits."""
    fitting = zip(low_tokens, brick, brick_grid(tokens, brick), strict=True)
    return tuple(min(math.ceil(n / b), g) for n, b, g in fitting)
