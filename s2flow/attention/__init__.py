"""Window attention: one function, several backends (Eq. 7).

    A = softmax(q k^T / sqrt(d) + log M),    out = A v

with M the 0/1 mask of each head's window. Video tokens come first, on a (T, H, W) grid, row-major or in
brick order (`order.py`); text tokens (if any) follow: they are always attended and always attend
everything. Where a batch's prompts differ in length, padding is neither seen nor answered. Grid,
windows and text are a `Problem`.

    reference   the mask written out, in float32; memory is quadratic, for a few thousand tokens
    tiled       plain torch on any device, nothing masked; the fast path on a CPU
    triton      our kernel: windows are a table that the kernel reads, nothing is built or compiled anew
    flex        FlexAttention, from block lists that are computed, heads grouped by window
    fa4         flash-attn-4's block sparsity, an optional extra for Hopper and Blackwell

`backend="auto"` takes the first usable of fa4, triton, flex, tiled (`dispatch.py`). What may differ
between machines, and on a GPU between processes (tile sizes are tuned), is rounding.
"""

from torch import Tensor

from s2flow.attention import dispatch
from s2flow.attention.order import brick_order, reordered
from s2flow.attention.problem import Problem

BACKENDS = dispatch.NAMES


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, problem: Problem, backend: str = "auto"
) -> Tensor:
    """Attention of every head over its own window; q, k, v: (B, heads, L, d), L = T*H*W + n_text.

    Returns out, (B, heads, L, d) in q's dtype and the order of its tokens, 0 for padding. Raises
    UserError for a backend that is unknown or cannot be used here.
    """
    module = dispatch.module(dispatch.resolve(backend, problem))
    if problem.ordered == module.IN_BRICKS:
        return module.window_attention(q, k, v, problem)
    to_bricks, to_rows = brick_order(problem.tokens, problem.brick, q.device)
    enter, leave = (to_rows, to_bricks) if problem.ordered else (to_bricks, to_rows)
    out = module.window_attention(*(reordered(x, enter) for x in (q, k, v)), problem)
    return reordered(out, leave)
