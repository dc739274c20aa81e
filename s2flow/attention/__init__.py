"""Window attention: one function, several backends (Eq. 7).

    A = softmax(q k^T / sqrt(d) + log M),      out = A v

with M the 0/1 mask of each head's window. Video tokens come first, row-major on a (T, H, W) grid; text
tokens (if any) follow: they are always attended and always attend everything. Where a batch's prompts
differ in length, each clip is cut to its own text instead of masked: no backend knows of padding.

`backend="auto"` takes the fastest one usable here. `reference` builds the mask and is meant for a few
thousand tokens; `tiled` never does, runs on any device, and is the fast path on a CPU.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from s2flow.attention import reference, tiled
from s2flow.errors import UserError
from s2flow.windows import Box

BACKENDS = {"tiled": tiled.window_attention, "reference": reference.window_attention}


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    boxes: list[Box],
    tokens: Box,
    brick: Box,
    backend: str = "auto",
    text: Sequence[int] | None = None,
) -> Tensor:
    """Attention of every head over its own window.

    q, k, v: (B, heads, T*H*W + n_text, d); boxes: one window per head, in bricks; tokens: the video
    grid (T, H, W); text: how many of each clip's n_text tokens are real, None for all (what comes out
    for the others is 0). Returns (B, heads, T*H*W + n_text, d) in q's dtype.
    """
    if backend == "auto":
        backend = "tiled"
    if backend not in BACKENDS:
        raise UserError(
            f"attention={backend} is unknown; type attention=auto or one of {list(BACKENDS)}"
        )
    attend = BACKENDS[backend]
    if text is None:
        return attend(q, k, v, boxes, tokens, brick)
    out = q.new_zeros(q.shape)
    for i, n_text in enumerate(text):
        real = slice(math.prod(tokens) + n_text)
        out[i : i + 1, :, real] = attend(
            *(x[i : i + 1, :, real] for x in (q, k, v)), boxes, tokens, brick
        )
    return out
