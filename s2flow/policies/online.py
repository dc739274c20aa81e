"""Boxes chosen inside the HR forward, from the q, k, v that are about to be used.

The first forward of a step decides for each layer and head, and its boxes hold for the rest of the
step: for the unconditional pass (which comes second), as the LR flow's windows hold for both passes,
and for the second evaluation of heun. What was chosen is kept as a plan, so that densities and
histograms are those of the windows that ran.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s2flow.backbones.routing import AttentionRouter, Replacer
from s2flow.coverage import sample_rows
from s2flow.plan import Plan, Windows, whole_grid
from s2flow.policies.base import Case, Policy, candidates_of


class Online(Windows):
    """A plan of whole grids that fills as the HR flow runs; subclasses override `choose`.

    Ranks share heads in order, as costs are not known before the forward.
    """

    def __init__(self, policy: Policy, case: Case, coverage: Tensor) -> None:
        self.policy, self.case, self.chosen = policy, case, set()
        self.plan = Plan(whole_grid(coverage.shape[:-3], case.grid), case.tokens, case.brick)
        self.boxes = candidates_of(policy, case)

    def choose(self, n: int, layer: int, q, k, v, router: AttentionRouter) -> Tensor:
        """Boxes of step n for all heads of a layer, (B, heads, 3), from the heads that are here."""
        raise NotImplementedError

    def sampled(self, n: int, layer: int) -> Tensor:
        """Query rows, seeded by step and layer: the same for a clip in any batch."""
        return sample_rows(math.prod(self.case.tokens), self.case.rows, seed=1000 * n + layer)

    def replacer(self, n: int, attention: str, router: AttentionRouter) -> Replacer:
        """The plan's, once the boxes of this step and layer are in it."""

        def replace(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
            if not self.policy.dense(n, layer, self.case.t_i) and (n, layer) not in self.chosen:
                self.plan.boxes[n, layer] = self.choose(n, layer, q, k, v, router)
                self.chosen.add((n, layer))
            return self.plan.attend(n, attention, router, layer, q, k, v)

        return replace

    def report(self, steps: Sequence[int], clip: int) -> dict[str, Any]:
        """That of the plan which came about."""
        return self.plan.report(steps, clip)

    def kept(self, steps: Sequence[int], clip: int) -> Tensor:
        """See `plan.Windows`."""
        return self.plan.kept(steps, clip)


def per_clip(values: dict[int, list[Tensor]], clip: int) -> dict[str, float]:
    """{step: mean over layers} of one clip, from one (B,) tensor per layer."""
    return {str(n): round(float(torch.stack(x)[:, clip].mean()), 6) for n, x in values.items()}
