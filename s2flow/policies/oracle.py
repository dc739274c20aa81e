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
from s2flow.policies import adaptive
from s2flow.policies.base import HR, Case, Policy, check_candidates
from s2flow.policies.online import Online, per_clip
from s2flow.windows import DEFAULT_EXPONENTS, choose

READS, BY_VOLUME, OPTIONS, IGNORES = HR, True, ("exponents",), frozenset()
USUAL = DEFAULT_EXPONENTS
check = check_candidates


class Oracle(Online):
    """See the module; guided: the adaptive plan of the LR flow, for the regret."""

    def __init__(self, policy: Policy, case: Case, coverage: Tensor) -> None:
        super().__init__(policy, case, coverage)
        self.guided = adaptive.decide(policy, case, coverage)
        self.measured: dict[str, dict[int, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        self.by_layer: dict[int, dict[int, Tensor]] = defaultdict(dict)

    def choose(self, n: int, layer: int, q, k, v, router: AttentionRouter) -> Tensor:
        """See `Online`."""
        rows, case = self.sampled(n, layer), self.case
        r = coverage_by_heads(q, k, rows, case.tokens, case.brick, router.text)  # (Eq. 8)
        r = router.all_heads(r).cpu()
        best, lr = choose(r, self.boxes), self.guided.boxes[n, layer]  # (Eq. 9)
        reached = coverage_of(r, best)
        regret = (reached - coverage_of(r, lr)).mean(1)
        same = (best == lr).all(-1).float().mean(1)
        of_step = {"coverage": reached.mean(1), "regret": regret, "same_choice": same}
        for name, value in of_step.items():
            self.measured[name][n].append(value)
        self.by_layer[n][layer] = regret
        return best

    def report(self, steps: Sequence[int], clip: int) -> dict[str, Any]:
        """Beside the plan's: coverage and regret per step (regret per layer, too), of what chose."""
        means = {name: per_clip(steps, clip) for name, steps in self.measured.items()}
        means["regret_by_layer"] = {
            str(n): {str(layer): round(float(x[clip]), 6) for layer, x in layers.items()}
            for n, layers in self.by_layer.items()
        }
        return super().report(steps, clip) | {"oracle": means}


decide = Oracle


def coverage_of(r: Tensor, boxes: Tensor) -> Tensor:
    """r (B, heads, g_t, g_h, g_w) of all box sizes at one box per head, (B, heads, 3)."""
    g = r.shape[-3:]
    a, b, c = (boxes.long() - 1).unbind(-1)
    return r.flatten(-3).gather(-1, ((a * g[1] + b) * g[2] + c)[..., None])[..., 0]
