"""Oracle: Eq. 9 from the HR flow's own attention, the ceiling of LR guidance.

    r_hr(w)  = Eq. 8 of the HR q, k at this very step and layer, from sampled rows
    w*       = argmax over the candidates of r_hr(w)                                     (Eq. 9)
    regret   = mean over layers and heads of r_hr(w*) - r_hr(w_lr),  w_lr what the LR flow would choose

It costs a full row of logits per sampled query and layer, which is what LR guidance is there to save.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from s2flow.backbones.routing import AttentionRouter
from s2flow.coverage import coverage_by_heads
from s2flow.grid import Box
from s2flow.plan import Plan
from s2flow.policies import adaptive
from s2flow.policies.base import HR, Case, Policy, check_candidates, spelt
from s2flow.policies.online import Online, per_clip, unfilled
from s2flow.windows import DEFAULT_EXPONENTS, choose

READS = HR
BY_VOLUME = True
OPTIONS = ("exponents",)
IGNORES = frozenset()


def label(policy: Policy) -> str:
    """With its exponents, unless they are the usual ones."""
    return spelt(policy, DEFAULT_EXPONENTS)


def check(policy: Policy, case: Case) -> Policy:
    """Raises UserError if no candidate has a volume near f."""
    check_candidates(policy, case)
    return policy


def decide(policy: Policy, case: Case, coverage: Tensor) -> "Oracle":
    """See the module; the LR flow's choice is made beside it, for the regret."""
    guided = adaptive.decide(policy, case, coverage)
    return Oracle(*unfilled(policy, case, coverage), guided)


class Oracle(Online):
    """guided: the adaptive plan of the LR flow, for the regret."""

    def __init__(
        self, policy: Policy, plan: Plan, boxes: list[Box], rows: int, t_i: int, guided: Plan
    ) -> None:
        super().__init__(policy, plan, boxes, rows, t_i)
        self.guided = guided
        self.measured: dict[str, dict[int, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        self.by_layer: dict[int, dict[int, Tensor]] = defaultdict(dict)

    def choose(
        self, n: int, layer: int, q: Tensor, k: Tensor, v: Tensor, router: AttentionRouter
    ) -> Tensor:
        """See `Online`."""
        rows, (tokens, brick) = self.sampled(n, layer), (self.plan.tokens, self.plan.brick)
        r = coverage_by_heads(q, k, rows, tokens, brick, router.text)  # (Eq. 8)
        r = router.all_heads(r).cpu()
        best, lr = choose(r, self.boxes), self.guided.boxes[n, layer]  # (Eq. 9)
        reached = coverage_of(r, best)
        self.measured["coverage"][n].append(reached.mean(1))
        regret = (reached - coverage_of(r, lr)).mean(1)
        self.measured["regret"][n].append(regret)
        self.by_layer[n][layer] = regret
        self.measured["same_choice"][n].append((best == lr).all(-1).float().mean(1))
        return best

    def report(self, steps: Sequence[int], clip: int) -> dict[str, Any]:
        """Coverage and regret per step (regret per layer, too) beside the plan's densities.

        Layers that chose count.
        """
        means = {name: per_clip(steps, clip) for name, steps in self.measured.items()}
        means["regret_by_layer"] = {
            str(n): {str(layer): round(float(x[clip]), 6) for layer, x in layers.items()}
            for n, layers in self.by_layer.items()
        }
        return super().report(steps, clip) | {"oracle": means}


def coverage_of(r: Tensor, boxes: Tensor) -> Tensor:
    """r (B, heads, g_t, g_h, g_w) of all box sizes at one box per head, (B, heads, 3)."""
    g = r.shape[-3:]
    a, b, c = (boxes.long() - 1).unbind(-1)
    return r.flatten(-3).gather(-1, ((a * g[1] + b) * g[2] + c)[..., None])[..., 0]
