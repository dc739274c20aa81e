"""Window attention: one function, several backends (Eq. 7).

    A = softmax(q k^T / sqrt(d) + log M),      out = A v

with M the 0/1 mask of each head's window. Video tokens come first, row-major on a (T, H, W) grid; text
tokens (if any) follow: they are always attended and always attend everything.

`backend="auto"` takes the fastest one usable here. `reference` builds the mask and is meant for a few
thousand tokens; `tiled` never does, runs on any device, and is the fast path on a CPU.
"""

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
) -> Tensor:
    """Attention of every head over its own window.

    q, k, v: (B, heads, T*H*W + n_text, d); boxes: one window per head, in bricks; tokens: the video
    grid (T, H, W). Returns (B, heads, T*H*W + n_text, d) in q's dtype.
    """
    if backend == "auto":
        backend = "tiled"
    if backend not in BACKENDS:
        raise UserError(
            f"attention={backend} is unknown; type attention=auto or one of {list(BACKENDS)}"
        )
    return BACKENDS[backend](q, k, v, boxes, tokens, brick)
