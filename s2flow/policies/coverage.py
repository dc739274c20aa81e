"""Beyond the paper: per head the smallest window that covers `target` of its LR attention.

w* = argmin_w |w|   subject to   r(w) >= target (Eq. 8)   and   |w| <= cap of the volume
"""

import math

from torch import Tensor

from s2flow.errors import UserError
from s2flow.plan import Plan
from s2flow.policies.base import LR, Case, Policy, static
from s2flow.windows import choose_by_target, to_grid

READS, BY_VOLUME, OPTIONS = LR, False, ("target", "cap")
IGNORES = frozenset({"sparsity", "density"})


def label(policy: Policy) -> str:
    """With its target, and its cap if it has one."""
    cap = f"<={policy.cap:g}" if policy.cap < 1 else ""
    return f"coverage {policy.target:g}{cap}"


def check(policy: Policy, case: Case) -> Policy:
    """Raises UserError if the cap is under one brick of the LR grid."""
    bricks = math.prod(case.low_grid)
    if policy.cap * bricks < 1 - 1e-9:
        raise UserError(
            f"windows.cap={policy.cap:g} is less than one of the {bricks} bricks, which every query "
            f"keeps; type windows.cap={1 / bricks:.4g} or more"
        )
    return policy


def density(policy: Policy, case: Case) -> float:
    """Its cap: what is below it depends on the attention."""
    return policy.cap


def decide(policy: Policy, case: Case, coverage: Tensor) -> Plan:
    """See the module."""
    boxes = choose_by_target(coverage.float(), policy.target, policy.cap)
    boxes = to_grid(boxes, case.low_grid, case.tokens, case.brick, None)
    return static(policy, case, boxes, coverage)
