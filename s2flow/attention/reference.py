"""Eq. 7 with its mask written out, in float32: the twin that every fast path is tested against.

Deviation: masked logits are -inf, not 0 (a factor of 0 would leave masked keys the weight e^0).
"""

import math

import torch
from torch import Tensor

from s2flow.attention.batches import clip_by_clip
from s2flow.grid import Box, window_mask

IN_BRICKS = False
AUTO = ("cpu", "cuda", "mps")


def unusable(q: Tensor, brick: Box) -> str | None:
    """Why it cannot be used for such q; never."""
    return None


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    windows: Tensor,
    tokens: Box,
    brick: Box,
    text: list[int] | None = None,
    lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """See `s2flow.attention`. Memory is quadratic in the number of tokens."""
    n_video = math.prod(tokens)

    def attend(clips: slice, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        M = torch.ones(*q.shape[:3], q.shape[2], dtype=torch.bool)
        for clip, boxes in enumerate(windows[clips].tolist()):
            for head, box in enumerate(boxes):
                M[clip, head, :n_video, :n_video] = window_mask(tokens, brick, tuple(box))
        logits = q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
        logits = logits.masked_fill(~M.to(q.device), -math.inf)
        return (logits.softmax(-1) @ v.float()).to(q.dtype), logits.logsumexp(-1)  # (Eq. 7)

    return clip_by_clip(attend, q, k, v, n_video, text, lse)
