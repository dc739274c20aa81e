"""One window for all heads, layers and steps, the first exponent's: the 50 %* row of Table 2."""

from dataclasses import replace

from torch import Tensor

from s2flow.plan import Plan
from s2flow.policies.base import (
    NOTHING,
    Case,
    Policy,
    candidates_of,
    check_candidates,
    everywhere,
    spelt,
    static,
)
from s2flow.windows import CUBE

READS = NOTHING
BY_VOLUME = True
OPTIONS = ("exponents",)
IGNORES = frozenset()


def label(policy: Policy) -> str:
    """With its exponents, unless they are those of a cube."""
    return spelt(policy, (CUBE,))


def check(policy: Policy, case: Case) -> Policy:
    """The policy with the only exponents that it reads. Raises UserError if no box has volume f."""
    policy = replace(policy, exponents=policy.exponents[:1])
    check_candidates(policy, case)
    return policy


def decide(policy: Policy, case: Case, coverage: Tensor) -> Plan:
    """See the module."""
    return static(policy, case, everywhere(candidates_of(policy, case)[0], coverage))
