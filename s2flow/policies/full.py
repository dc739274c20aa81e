"""The whole grid in every step, layer and head: the model's own dense attention (`policies.decide`)."""

from s2flow.policies.base import NOTHING

READS, BY_VOLUME, OPTIONS = NOTHING, False, ()
IGNORES = frozenset({"sparsity", "density", "brick_low", "brick_high", "coverage_rows"})
