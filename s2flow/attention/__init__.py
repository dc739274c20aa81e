"""Window attention: one function, several backends (Eq. 7).

    A = softmax(q k^T / sqrt(d) + log M),      out = A v

with M the 0/1 mask of each head's window. Video tokens come first, row-major on a (T, H, W) grid; text
tokens (if any) follow: they are always attended and always attend everything. Where a batch's prompts
differ in length, each clip is cut to its own text instead of masked: no backend knows of padding.

`backend="auto"` takes the fastest one usable here. `reference` builds the mask and is meant for a few
thousand tokens; `tiled` never does, runs on any device, and is the fast path on a CPU.
"""

import math
from collections.abc import Callable, Sequence

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
    return clip_by_clip(
        lambda clips, *qkv: attend(*qkv, boxes, tokens, brick), q, k, v, math.prod(tokens), text
    )


def clip_by_clip(
    attend: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    n_video: int,
    text: Sequence[int] | None,
) -> Tensor:
    """attend(clips, q, k, v) of the whole batch, or of each clip cut to its own text where it differs.

    clips: the slice of the batch that it is given. What comes out for padding is 0.
    """
    if text is None:
        return attend(slice(None), q, k, v)
    out = q.new_zeros(q.shape)
    for i, n_text in enumerate(text):
        one, real = slice(i, i + 1), slice(n_video + n_text)
        out[one, :, real] = attend(one, *(x[one, :, real] for x in (q, k, v)))
    return out
