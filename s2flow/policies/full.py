"""The whole grid in every step, layer and head: the model's own dense attention."""

from torch import Tensor

from s2flow.plan import Plan
from s2flow.policies.base import NOTHING, Case, Policy, everywhere, static

READS = NOTHING
BY_VOLUME = False
OPTIONS = ()
IGNORES = frozenset({"sparsity", "density", "brick_low", "brick_high", "coverage_rows"})


def label(policy: Policy) -> str:
    """It has no options."""
    return policy.name


def check(policy: Policy, case: Case) -> Policy:
    """It can always be used."""
    return policy


def density(policy: Policy, case: Case) -> float:
    """All of it."""
    return 1.0


def decide(policy: Policy, case: Case, coverage: Tensor) -> Plan:
    """See the module."""
    return static(policy, case, everywhere(case.grid, coverage))
