"""Eq. 7 with its mask written out, in float32: the twin that every fast path is tested against.

Deviation: masked logits are -inf, not 0 (a factor of 0 would leave masked keys the weight e^0).
"""

import math

import torch
from torch import Tensor

from s2flow.windows import Box, window_mask


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, boxes: list[Box], tokens: Box, brick: Box
) -> Tensor:
    """See `s2flow.attention.window_attention`. Memory is quadratic in the number of tokens."""
    L, n_video = q.shape[2], math.prod(tokens)
    M = torch.ones(len(boxes), L, L, dtype=torch.bool)
    for head, box in enumerate(boxes):
        M[head, :n_video, :n_video] = window_mask(tokens, brick, box)
    logits = q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
    A = logits.masked_fill(~M.to(q.device), -math.inf).softmax(-1)  # (Eq. 7)
    return (A @ v.float()).to(q.dtype)
