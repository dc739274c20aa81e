"""Eq. 7 with its mask written out, in float32: the twin that every fast path is tested against.

Memory is quadratic in the number of tokens.
Deviation: masked logits are -inf, not 0 (a factor of 0 would leave masked keys the weight e^0).
"""

import math

import torch
from torch import Tensor

from s2flow.attention.batches import parts, results
from s2flow.attention.problem import Problem
from s2flow.grid import window_mask

IN_BRICKS = False
AUTO = ("cpu", "cuda", "mps")


def window_attention(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Tensor:
    """See `s2flow.attention`."""
    n_video, out = problem.n_video, results(q, problem)
    for clips, Q, K, V, O in parts(problem, q, k, v, out):
        M = torch.ones(*Q.shape[:3], Q.shape[2], dtype=torch.bool)
        for clip, boxes in enumerate(problem.windows[clips].tolist()):
            for head, box in enumerate(boxes):
                mask = window_mask(problem.tokens, problem.brick, tuple(box))
                M[clip, head, :n_video, :n_video] = mask
        logits = Q.float() @ K.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
        logits = logits.masked_fill(~M.to(q.device), -math.inf)
        O[:] = (logits.softmax(-1) @ V.float()).to(q.dtype)  # (Eq. 7)
    return out
