"""Window attention: one function, several backends (Eq. 7).

    A = softmax(q k^T / sqrt(d) + log M),    out = A v,    lse = log sum_j M_j exp(q k_j^T / sqrt(d))

with M the 0/1 mask of each head's window. Video tokens come first, on a (T, H, W) grid, row-major or in
brick order (`order.py`); text tokens (if any) follow: they are always attended and always attend
everything. Where a batch's prompts differ in length, padding is neither seen nor answered.

    reference   the mask written out, in float32; memory is quadratic, for a few thousand tokens
    tiled       plain torch on any device, nothing masked; the fast path on a CPU
    triton      our kernel: windows are a table that the kernel reads, nothing is built or compiled anew
    flex        FlexAttention, from block lists that are computed, heads grouped by window
    fa4         flash-attn-4's block sparsity, an optional extra for Hopper and Blackwell

`backend="auto"` takes the first usable of fa4, triton, flex, tiled (`dispatch.py`). What may differ
between machines, and on a GPU between processes (tile sizes are tuned), is rounding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from s2flow.attention import dispatch
from s2flow.attention.order import brick_order, reordered
from s2flow.errors import UserError
from s2flow.grid import Box, brick_grid

BACKENDS = dispatch.NAMES


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    windows: Tensor | Sequence[Box],
    tokens: Box,
    brick: Box,
    backend: str = "auto",
    text: Sequence[int] | None = None,
    *,
    ordered: bool = False,
    lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of every head over its own window.

    q, k, v: (B, heads, T*H*W + n_text, d). windows: in bricks, (heads, 3), or (B, heads, 3) where
    clips differ, on the CPU. tokens: the video grid (T, H, W). text: how many of each clip's n_text
    tokens are real, None for all. ordered: the video tokens are in brick order, and stay in it.

    Returns out, (B, heads, T*H*W + n_text, d) in q's dtype, 0 for padding; with lse=True also lse,
    (B, heads, T*H*W + n_text) float32, -inf for padding. Raises UserError for a backend that is
    unknown or cannot be used here, and for a window that is empty or larger than the grid.
    """
    module = dispatch.module(dispatch.resolve(backend, q, brick, tokens))
    table = window_table(windows, q.shape[:2], brick_grid(tokens, brick))
    permuted = ordered != module.IN_BRICKS
    if permuted:
        order, inverse = brick_order(tokens, brick, q.device)
        there, back = (inverse, order) if ordered else (order, inverse)
        q, k, v = (reordered(x, there) for x in (q, k, v))
    lengths = None if text is None else [int(n) for n in text]
    out, sums = module.window_attention(q, k, v, table, tokens, brick, lengths, lse)
    if permuted:
        out, sums = reordered(out, back), sums if sums is None else reordered(sums, back)
    return (out, sums) if lse else out


def window_table(windows: Tensor | Sequence[Box], shape: Sequence[int], g: Box) -> Tensor:
    """Windows as (B, heads, 3) int32 on the CPU. Raises UserError if one is no box of the grid g."""
    table = torch.as_tensor(windows, dtype=torch.int32, device="cpu")
    if table.shape not in ((shape[1], 3), (*shape, 3)):
        raise UserError(
            f"windows of shape {tuple(table.shape)} do not fit {shape[0]} clips of {shape[1]} heads; "
            f"give one (t, h, w) a head: {(shape[1], 3)} or {(*shape, 3)}"
        )
    if bool((table < 1).any()) or bool((table > torch.tensor(g)).any()):
        wrong = next(
            tuple(b)
            for b in table.flatten(0, -2).tolist()
            if any(not 1 <= w <= n for w, n in zip(b, g, strict=True))
        )
        raise UserError(
            f"window {wrong} is no box of the {g[0]}x{g[1]}x{g[2]} brick grid: a row would be empty "
            "or leave the grid; give each side 1 to that many bricks"
        )
    return table.expand(*shape, 3)
