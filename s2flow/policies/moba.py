"""MoBA-like: every query brick attends the key bricks whose mean key its mean query likes best.

The choice is part of the attention (`attention.bricks`): each forward makes its own, in the conditional
and the unconditional pass alike. k = round(f * bricks) key bricks per query brick, its own among them.

The choice jumps: where two bricks are alike to the last digits, rounding decides, and a clip made in
another batch may differ by more than rounding (3e-4 of the norm after two steps on the embedded model).
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s2flow.attention.bricks import brick_attention, brick_density, choose_bricks
from s2flow.attention.problem import Problem
from s2flow.backbones.routing import AttentionRouter, Replacer
from s2flow.errors import UserError
from s2flow.plan import Windows
from s2flow.policies.base import HR, Case, Policy
from s2flow.policies.online import per_clip

READS, BY_VOLUME, OPTIONS = HR, True, ()
IGNORES = frozenset({"brick_low", "coverage_rows"})


class Moba(Windows):
    """Bricks of step n, layer and head as they come; only densities are kept."""

    def __init__(self, policy: Policy, case: Case, coverage: Tensor) -> None:
        self.policy, self.case, self.bricks = policy, case, math.prod(case.grid)
        self.keep = max(round(case.f * self.bricks), 1)
        self.pairs: dict[int, list[Tensor]] = defaultdict(list)

    def replacer(self, n: int, attention: str, router: AttentionRouter) -> Replacer:
        """See `plan.Windows`."""

        def replace(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
            dense = self.policy.dense(n, layer, self.case.t_i)
            keep = self.bricks if dense else self.keep
            if keep == self.bricks and attention == "auto":
                self.pairs[n].append(torch.ones(len(q)))
                return None  # the model's own dense call, bitwise
            grid = (self.case.tokens, self.case.brick)
            chosen = choose_bricks(q, k, keep, *grid)
            kept = router.all_heads(brick_density(chosen, *grid))
            self.pairs[n].append(kept.mean(1).cpu())
            problem = Problem.of(q, *grid, text=router.text)
            return brick_attention(q, k, v, chosen, problem, attention)

        return replace

    def report(self, steps: Sequence[int], clip: int) -> dict[str, Any]:
        """Realised density per step: mean over layers, heads and forwards."""
        density = per_clip({n: self.pairs[n] for n in steps}, clip)
        return {"density": density, "moba": {"bricks_kept": self.keep, "bricks": self.bricks}}


decide = Moba


def check(policy: Policy, case: Case) -> Policy:
    """Raises UserError if f is under half a brick of the HR grid, naming the nearest that is not."""
    g, bricks = case.grid, math.prod(case.grid)
    if case.f * bricks < 0.5:
        raise UserError(
            f"windows=moba keeps whole bricks of the {g[0]}x{g[1]}x{g[2]} grid, and f = {case.f:.4g} "
            f"is less than half of one; the nearest reachable f is {1 / bricks:.4g} "
            f"(sparsity={1 / bricks:.4g} with density=volume)"
        )
    return policy
