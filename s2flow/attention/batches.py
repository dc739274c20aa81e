"""A batch in the parts that a backend computes at once, and what every backend's results start from."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from s2flow.attention.problem import Problem
from s2flow.grid import Box

Part = tuple[slice, Tensor, Tensor, Tensor, Tensor, Tensor | None]


def results(q: Tensor, problem: Problem, lse: bool) -> tuple[Tensor, Tensor | None]:
    """(out, lse or None) for a backend to write to; where there is padding, out is 0 and lse -inf."""
    if problem.text is None:
        return torch.empty_like(q), torch.empty(q.shape[:-1], device=q.device) if lse else None
    sums = torch.full(q.shape[:-1], -math.inf, device=q.device) if lse else None
    return q.new_zeros(q.shape), sums


def parts(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor | None,
    problem: Problem,
    together: bool = True,
) -> Iterator[Part]:
    """(clips, q, k, v, out, lse): views of the whole batch, or of each clip cut to its own text.

    together: whether clips may go together. For backends that know no padding.
    """
    if problem.text is None and (together or len(q) == 1):
        yield slice(None), q, k, v, out, lse
        return
    for i in range(len(q)):
        n = q.shape[2] if problem.text is None else problem.n_video + problem.text[i]
        one = slice(i, i + 1)
        yield one, *(x if x is None else x[one, :, :n] for x in (q, k, v, out, lse))


def boxes_of(windows: Tensor) -> tuple[list[Box], bool]:
    """The first clip's boxes of (B, heads, 3) windows, and whether all clips have the same."""
    return [tuple(b) for b in windows[0].tolist()], bool((windows == windows[:1]).all())


def log_sum_exp(q: Tensor, k: Tensor, at_once: int = 2**24) -> Tensor:
    """log sum_j exp(q k_j^T / sqrt(d)) by pieces of q: (..., L, d), (..., K, d) -> (..., L) float32."""
    n = max(at_once // (math.prod(q.shape[:-2]) * k.shape[-2]), 1)
    keys = k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
    return torch.cat([(x.float() @ keys).logsumexp(-1) for x in q.split(n, -2)], -1)


def attend_text(
    q: Tensor, k: Tensor, v: Tensor, n_video: int, out: Tensor, sums: Tensor | None
) -> None:
    """Text queries attend everything: written to `out` and, where it is not None, `sums`."""
    if q.shape[2] == n_video:
        return
    queries = q[:, :, n_video:]
    out[:, :, n_video:] = F.scaled_dot_product_attention(queries, k, v)
    if sums is not None:
        sums[:, :, n_video:] = log_sum_exp(queries, k)
