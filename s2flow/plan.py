"""The plan: who decides the windows, and what they are in every HR step, layer and head (Eq. 9).

A `Policy` says how windows are chosen; it is part of the recipe. Two kinds of deciders follow from it,
and the HR flow treats them alike (`Windows`): per step it asks for a replacer of the model's attention,
and when the flow has ended, for what to record.

    static    a `Plan`: the boxes of all steps, layers and heads are known before the HR flow starts
              adaptive, fixed, coverage, full; sta (a file of `s2flow.run.calibrate`); inward
    online    `s2flow.policies`: the HR flow's own q, k, v decide inside the forward
              oracle, svg, moba

Deviation: `sta` (sliding-tile attention, Zhang et al. 2025) searches each head's window offline over
calibration prompts; ours takes the equal-volume candidate of the highest mean coverage (Eq. 8).
`inward` is the window half of FreeSwim (arXiv 2511.14712): each query sees the training resolution's
extent, shifted inward at the borders. Its second path (a forward with full attention, whose
cross-attention overrides the windowed one's) is left out, so it is not called by that name.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from s2flow.attention import Problem, window_attention
from s2flow.backbones.routing import AttentionRouter, Replacer, Work
from s2flow.grid import Box, brick_grid, realised_density
from s2flow.recipe.identity import BY_VOLUME
from s2flow.windows import CUBE, DEFAULT_EXPONENTS, candidates, choose, choose_by_target, to_grid

BY_CANDIDATES = ("adaptive", "fixed", "oracle", "svg")  # exponents are theirs


@dataclass(frozen=True)
class Calibration:
    """What a file of `s2flow.calibrate` holds: one box per layer and head, and what it is valid for.

    boxes: in bricks, by layer and head; prompts: those that it was made with; f: as requested.
    """

    backbone: str
    weights: str
    tokens: Box
    brick: Box
    f: float
    prompts: tuple[str, ...]
    boxes: tuple[tuple[Box, ...], ...]


@dataclass(frozen=True)
class Policy:
    """How windows are chosen; the `windows` group of the config.

    name: "adaptive" (Eq. 9 over `exponents`), "fixed" (one candidate for all heads, layers and
    steps: the 50 %* row), "coverage" (smallest box up to `cap` reaching `target`), "full", "sta" (the
    boxes of a file, named by the hash of its content), "inward", or one of `s2flow.policies`.
    dense_steps: so many first HR steps, dense_layers: these layers, attend everything.
    """

    name: str
    exponents: tuple[tuple[float, float, float], ...] = DEFAULT_EXPONENTS
    target: float = 0.95
    cap: float = 1.0
    dense_steps: int = 0
    dense_layers: tuple[int, ...] = ()
    file: str = ""  # of sta: hash of what its file holds
    calibration: Calibration | None = field(default=None, compare=False, repr=False)

    @property
    def label(self) -> str:
        """The policy in a word for tables; anything but the usual settings is spelt out."""
        shapes = {
            DEFAULT_EXPONENTS: "adaptive",
            (CUBE,): "cubes",
            ((0, 1 / 2, 1 / 2),): "temporal",
        }
        spelt = " ".join("[" + ",".join(f"{a:.3g}" for a in e) + "]" for e in self.exponents)
        patterns = ((1, 0, 0), (0, 1 / 2, 1 / 2))
        words = {
            "adaptive": shapes.get(self.exponents, f"adaptive {spelt}"),
            "fixed": "fixed" if self.exponents == (CUBE,) else f"fixed {spelt}",
            "coverage": f"coverage {self.target:g}" + (f"<={self.cap:g}" if self.cap < 1 else ""),
            "oracle": "oracle" if self.exponents == DEFAULT_EXPONENTS else f"oracle {spelt}",
            "svg": "svg" if self.exponents == patterns else f"svg {spelt}",
            "sta": f"sta {self.file}",
        }.get(self.name, self.name)
        words += f" dense_steps={self.dense_steps}" if self.dense_steps else ""
        return words + (f" dense_layers={list(self.dense_layers)}" if self.dense_layers else "")

    def dense(self, n: int, layer: int, t_i: int) -> bool:
        """Whether a layer attends everything with n of t_i HR steps remaining."""
        return n > t_i - self.dense_steps or layer in self.dense_layers


class Windows(Protocol):
    """What the HR flow asks of whoever decides its windows."""

    def replacer(self, n: int, attention: str, router: AttentionRouter) -> Replacer:
        """Attention of step n; None from it means the model's own dense call."""

    def work(self, n: int) -> Work | None:
        """What each head of a layer costs in step n, if that is known before."""

    def report(self, steps: Sequence[int], clip: int) -> dict[str, Any]:
        """What to record of one clip after these HR steps: its realised density per step, and more."""

    def kept(self, steps: Sequence[int], clip: int) -> Tensor | None:
        """One clip's boxes in these HR steps, (steps, layers, heads, 3); None if they are no boxes."""


@dataclass(frozen=True)
class Plan:
    """Windows of every HR step: `boxes` (N+1, layers, B, heads, 3) int16, in bricks.

    Indexed by steps remaining; rows of steps that the HR flow never takes are the whole grid.
    """

    boxes: Tensor
    tokens: Box
    brick: Box

    @property
    def grid(self) -> Box:
        """Bricks per axis."""
        return brick_grid(self.tokens, self.brick)

    def replacer(self, n: int, attention: str, router: AttentionRouter) -> Replacer:
        """Every head inside its window; whole-grid layers stay with the model."""
        return functools.partial(self.attend, n, attention, router, None)

    def attend(
        self,
        n: int,
        attention: str,
        router: AttentionRouter,
        choose: Callable[[int, int, Tensor, Tensor, Tensor, AttentionRouter], None] | None,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> Tensor | None:
        """Attention of one layer in its windows; None where all are the whole grid.

        choose(n, layer, q, k, v, router): called first, for policies that decide by these.
        """
        if choose is not None:
            choose(n, layer, q, k, v, router)
        boxes = self.boxes[n, layer]
        if router.heads is not None:  # the others are with other ranks
            boxes = boxes[:, router.heads]
        if attention == "auto" and self.whole(boxes):
            return None  # the model's own dense call; bitwise, but for the order of its tokens
        problem = Problem.of(q, self.tokens, self.brick, boxes, router.text, router.ordered)
        return window_attention(q, k, v, problem, attention)

    def whole(self, boxes: Tensor) -> bool:
        """Whether all of these boxes are the whole grid."""
        return bool((boxes == torch.tensor(self.grid)).all())

    def work(self, n: int) -> Work:
        """Bricks in each head's window, over the batch."""
        return lambda layer: self.boxes[n, layer].float().prod(-1).sum(0).tolist()

    def report(self, steps: Sequence[int], clip: int) -> dict[str, Any]:
        """Density per step and histogram of boxes of one clip."""
        return {
            "density": {str(n): self.density(n, clip) for n in steps},
            "window_histogram": self.histogram(steps, clip),
        }

    def kept(self, steps: Sequence[int], clip: int) -> Tensor:
        """See `Windows`; in bricks of `grid`."""
        return self.boxes[list(steps), :, clip]

    def density(self, n: int, clip: int = 0) -> float:
        """Realised f of step n: mean over layers and heads of the valid pairs' share."""
        counts = Counter(map(tuple, self.boxes[n][:, clip].flatten(0, -2).tolist()))
        total = sum(counts.values())
        return (
            sum(c * realised_density(self.tokens, self.brick, b) for b, c in counts.items())
            / total
        )

    def histogram(self, steps: Sequence[int], clip: int = 0) -> dict[str, int]:
        """How many (step, layer, head) of these steps use each box, as {"8x2x6": 31, ...}."""
        rows = self.boxes[list(steps)][:, :, clip].flatten(0, -2).tolist()
        return dict(Counter("x".join(map(str, b)) for b in rows).most_common())


def make_plan(
    policy: Policy,
    f: float,
    coverage: Tensor,
    low_bricks: Box,
    tokens: Box,
    brick: Box,
    t_i: int,
    low_tokens: Box | None = None,
) -> Plan:
    """Plan of the HR flow from the LR flow's recorded coverage.

    coverage: (N+1, layers, B, heads, g_t, g_h, g_w) over the LR brick grid `low_bricks`. `tokens`
    and `brick` describe the HR grid; low_tokens: the LR grid, which `inward` asks for.
    """
    g, shape = brick_grid(tokens, brick), coverage.shape[:-3]
    plan = whole_grid(shape, g)
    if policy.name == "full" or (f >= 1 and policy.name in BY_VOLUME):
        return Plan(plan, tokens, brick)
    if policy.name == "coverage":
        boxes = choose_by_target(coverage.float(), policy.target, policy.cap)
        boxes = to_grid(boxes, low_bricks, tokens, brick, None)
    elif policy.name == "inward":
        box = inward_box(low_tokens, tokens, brick)
        boxes = torch.tensor(box, dtype=torch.int16).expand(*shape, 3)
    elif policy.name == "sta":
        boxes = torch.tensor(policy.calibration.boxes, dtype=torch.int16)
        boxes = boxes[None, :, None].expand(*shape, 3)
    else:
        found = candidates(f, policy.exponents, low_bricks)
        if policy.name == "fixed":
            boxes = torch.tensor(found[0], dtype=torch.int16).expand(*shape, 3)
        else:
            boxes = choose(coverage.float(), found)  # (Eq. 9)
        boxes = to_grid(boxes, low_bricks, tokens, brick, f)
    plan[1 : t_i + 1] = boxes[1 : t_i + 1]
    if policy.dense_steps:
        plan[max(t_i - policy.dense_steps, 0) + 1 : t_i + 1] = torch.tensor(g, dtype=torch.int16)
    for layer in policy.dense_layers:
        plan[:, layer] = torch.tensor(g, dtype=torch.int16)
    return Plan(plan, tokens, brick)


def whole_grid(shape: tuple[int, ...], g: Box) -> Tensor:
    """Boxes (*shape, 3) that are all the whole grid."""
    return torch.tensor(g, dtype=torch.int16).expand(*shape, 3).clone()


def candidates_of(policy: Policy, f: float, low_bricks: Box, tokens: Box, brick: Box) -> list[Box]:
    """The boxes of the HR grid that an adaptive plan of this policy may hold."""
    found = torch.tensor(candidates(f, policy.exponents, low_bricks), dtype=torch.int16)
    return [tuple(b) for b in to_grid(found, low_bricks, tokens, brick, f).tolist()]


def inward_box(low_tokens: Box, tokens: Box, brick: Box) -> Box:
    """The LR grid's extent in whole HR bricks, at least that of the LR grid where it fits."""
    fitting = zip(low_tokens, brick, brick_grid(tokens, brick), strict=True)
    return tuple(min(math.ceil(n / b), g) for n, b, g in fitting)
