"""The plan: what the windows are in every HR step, layer and head (Eq. 9), and how they are used.

Policies (`s2flow.policies`) decide them in two ways, which the HR flow treats alike (`Windows`):

    static    a `Plan`: the boxes of all steps, layers and heads are known before the HR flow starts
    online    the HR flow's own q, k, v decide inside the forward
"""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from s2flow.attention import Problem, window_attention
from s2flow.backbones.routing import AttentionRouter, Replacer, Work
from s2flow.grid import Box, brick_grid, realised_density


class Windows(Protocol):
    """What the HR flow asks of whoever decides its windows; None where a method is left out."""

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
        return functools.partial(self.attend, n, attention, router)

    def attend(self, n: int, attention: str, router, layer: int, q, k, v) -> Tensor | None:
        """Attention of one layer in its windows; None where all are the whole grid."""
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
        density = {str(n): self.density(n, clip) for n in steps}
        return {"density": density, "window_histogram": self.histogram(steps, clip)}

    def kept(self, steps: Sequence[int], clip: int) -> Tensor:
        """See `Windows`; in bricks of `grid`."""
        return self.boxes[list(steps), :, clip]

    def density(self, n: int, clip: int = 0) -> float:
        """Realised f of step n: mean over layers and heads of the valid pairs' share."""
        counts = Counter(map(tuple, self.boxes[n][:, clip].flatten(0, -2).tolist()))
        of = {box: realised_density(self.tokens, self.brick, box) for box in counts}
        return sum(c * of[box] for box, c in counts.items()) / sum(counts.values())

    def histogram(self, steps: Sequence[int], clip: int = 0) -> dict[str, int]:
        """How many (step, layer, head) of these steps use each box, as {"8x2x6": 31, ...}."""
        rows = self.boxes[list(steps)][:, :, clip].flatten(0, -2).tolist()
        return dict(Counter("x".join(map(str, b)) for b in rows).most_common())


def whole_grid(shape: tuple[int, ...], g: Box) -> Tensor:
    """Boxes (*shape, 3) that are all the whole grid."""
    return torch.tensor(g, dtype=torch.int16).expand(*shape, 3).clone()
