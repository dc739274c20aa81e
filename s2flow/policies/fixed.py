"""One window for all heads, layers and steps, the first exponent's: the 50 %* row of Table 2."""

from dataclasses import replace

from torch import Tensor

from s2flow.plan import Plan
from s2flow.policies.base import NOTHING, Case, Policy, candidates_of, check_candidates, static
from s2flow.windows import CUBE

READS, BY_VOLUME, OPTIONS, IGNORES = NOTHING, True, ("exponents",), frozenset()
USUAL = (CUBE,)


def check(policy: Policy, case: Case) -> Policy:
    """The policy with the only exponents that it reads. Raises UserError if no box has volume f."""
    return check_candidates(replace(policy, exponents=policy.exponents[:1]), case)


def decide(policy: Policy, case: Case, coverage: Tensor) -> Plan:
    """See the module."""
    return static(policy, case, candidates_of(policy, case)[0], coverage)
