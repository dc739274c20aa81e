"""For backends that know one window a head and no padding: a batch, cut into what they know."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from s2flow.grid import Box

Attend = Callable[..., tuple[Tensor, Tensor | None]]


def clip_by_clip(
    attend: Attend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    n_video: int,
    text: list[int] | None,
    lse: bool = False,
    alike: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """attend(clips, q, k, v) of the whole batch, or of each clip cut to its own text.

    clips: the slice of the batch that it is given; alike: whether clips may go together. What comes
    out for padding is 0, and its lse is -inf.
    """
    if text is None and (alike or len(q) == 1):
        return attend(slice(None), q, k, v)
    out = q.new_zeros(q.shape)
    sums = torch.full(q.shape[:-1], -math.inf, device=q.device) if lse else None
    for i in range(len(q)):
        n = q.shape[2] if text is None else n_video + text[i]
        one, real = slice(i, i + 1), slice(n)
        found, found_sums = attend(one, *(x[one, :, real] for x in (q, k, v)))
        out[one, :, real] = found
        if sums is not None:
            sums[one, :, real] = found_sums
    return out, sums


def boxes_of(table: Tensor) -> tuple[list[Box], bool]:
    """The first clip's boxes of a (B, heads, 3) table, and whether all clips have the same."""
    return [tuple(b) for b in table[0].tolist()], bool((table == table[:1]).all())


def log_sum_exp(q: Tensor, k: Tensor, at_once: int = 2**24) -> Tensor:
    """log sum_j exp(q k_j^T / sqrt(d)) by pieces of q: (..., L, d), (..., K, d) -> (..., L) float32."""
    n = max(at_once // (math.prod(q.shape[:-2]) * k.shape[-2]), 1)
    keys = k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
    return torch.cat([(x.float() @ keys).logsumexp(-1) for x in q.split(n, -2)], -1)
