"""One window attention, stated and checked once: what every backend is given beside q, k and v."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s2flow.errors import UserError
from s2flow.grid import Box, brick_grid


@dataclass(frozen=True, eq=False)
class Problem:
    """Self-attention of B clips over [video, text] tokens; q, k, v are (B, heads, L, head_dim).

    tokens: the video grid (T, H, W), L = T*H*W + n_text. brick: sides of a brick in tokens. windows:
    (B, heads, 3) int32 in bricks, on the CPU; None where no window is chosen yet, to ask which backend
    can be used. text: how many of each clip's n_text tokens are real; None for all. ordered: whether
    the video tokens are in brick order.
    """

    tokens: Box
    brick: Box
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    windows: Tensor | None = None
    n_text: int = 0
    text: tuple[int, ...] | None = None
    ordered: bool = False

    @classmethod
    def of(
        cls,
        q: Tensor,
        tokens: Box,
        brick: Box,
        windows: Tensor | Sequence[Box] | None = None,
        text: Sequence[int] | None = None,
        ordered: bool = False,
    ) -> "Problem":
        """That of q, (B, heads, L, d), in windows (heads, 3), or (B, heads, 3) where clips differ.

        Raises UserError for windows of another shape, or one that is empty or larger than the grid.
        """
        if windows is not None:
            windows = _checked(windows, q.shape[:2], brick_grid(tokens, brick))
        n_text = q.shape[2] - math.prod(tokens)
        text = None if text is None else tuple(int(n) for n in text)
        like_q = (q.shape[3], q.dtype, q.device)
        return cls(tokens, brick, *like_q, windows, n_text, text, ordered)

    @property
    def n_video(self) -> int:
        """Video tokens of a clip."""
        return math.prod(self.tokens)

    @property
    def grid(self) -> Box:
        """Bricks per axis."""
        return brick_grid(self.tokens, self.brick)

    @property
    def volume(self) -> int:
        """Tokens that fit in a brick."""
        return math.prod(self.brick)

    @property
    def ragged(self) -> bool:
        """Whether the brick does not divide the grid."""
        return any(n % b for n, b in zip(self.tokens, self.brick, strict=True))


def _checked(windows: Tensor | Sequence[Box], shape: Sequence[int], g: Box) -> Tensor:
    table = torch.as_tensor(windows, dtype=torch.int32, device="cpu")
    if table.shape not in ((shape[1], 3), (*shape, 3)):
        raise UserError(
            f"windows of shape {tuple(table.shape)} do not fit {shape[0]} clips of {shape[1]} heads; "
            f"give one (t, h, w) a head: {(shape[1], 3)} or {(*shape, 3)}"
        )
    wrong = table[((table < 1) | (table > torch.tensor(g))).any(-1)].tolist()
    if wrong:
        raise UserError(
            f"window {tuple(wrong[0])} is no box of the {g[0]}x{g[1]}x{g[2]} brick grid: a row would "
            "be empty or leave the grid; give each side 1 to that many bricks"
        )
    return table.expand(*shape, 3)
