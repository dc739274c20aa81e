"""Window policies, one file each, all of one shape:

    READS       whose attention decides: LR (known before the HR flow), HR (inside it) or NOTHING
    BY_VOLUME   whether it keeps the share f that sparsity and density ask for
    OPTIONS     the fields of `Policy` that it reads, beside dense_steps and dense_layers
    IGNORES     knobs of the recipe that change nothing under it
    USUAL       the exponents that its label leaves out, where it reads any
    density(policy, case) -> float              unless BY_VOLUME: the density f to expect, for costs
    decide(policy, case, coverage) -> Windows   a `Plan`, or a decider of `online.py`'s kind

and `label(policy)` and `check(policy, case)` where the defaults of `Policy` will not do. A new policy
is one such file, its name in NAMES, and `conf/windows/<name>.yaml`.
"""

from torch import Tensor

from s2flow.plan import Plan, Windows, whole_grid
from s2flow.policies.base import Case, Policy

NAMES = ("adaptive", "fixed", "oracle", "svg", "moba", "sta", "coverage", "full", "inward")


def decide(policy: Policy, case: Case, coverage: Tensor) -> Windows:
    """The windows of the last `case.t_i` steps, given the LR flow's coverage.

    coverage: (N+1, layers, B, heads, g_t, g_h, g_w) over the LR brick grid (Eq. 8).
    """
    if policy.whole(case.f):
        return Plan(whole_grid(coverage.shape[:-3], case.grid), case.tokens, case.brick)
    return policy.module.decide(policy, case, coverage)
