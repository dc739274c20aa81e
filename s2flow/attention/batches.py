"""What backends share: a batch in the parts that go together, text queries, and block lists.

    key bricks of brick (i_t, i_h, i_w) = (s_t + 0 ... w_t - 1) x (s_h + ...) x (s_w + ...),
    s = window_starts(g, w) on each axis

A block list is computed from the window, never searched for. All heads and clips of one window share
one: bricks x prod(window) int32, 6.5 MB at 460,800 tokens and f = 1/8.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from s2flow.attention.problem import Problem
from s2flow.grid import Box, window_starts

COPIED = 2**30  # bytes of the queries, keys and values copied at once, by backends of block lists


def results(q: Tensor, problem: Problem) -> Tensor:
    """What a backend writes its output to; where there is padding, 0."""
    return torch.empty_like(q) if problem.text is None else q.new_zeros(q.shape)


def parts(
    problem: Problem, *tensors: Tensor, together: bool = True
) -> Iterator[tuple[slice, *tuple[Tensor, ...]]]:
    """(clips, *views of the tensors): the whole batch, or each clip cut to its own text.

    tensors: q, k, v, out. together: whether clips of one text may go together.
    """
    q = tensors[0]
    if problem.text is None and (together or len(q) == 1):
        yield slice(None), *tensors
        return
    for i in range(len(q)):
        n = q.shape[2] if problem.text is None else problem.n_video + problem.text[i]
        yield slice(i, i + 1), *(x[i : i + 1, :, :n] for x in tensors)


def attend_text(q: Tensor, k: Tensor, v: Tensor, n_video: int, out: Tensor) -> None:
    """Text queries attend everything: written to `out`."""
    if q.shape[2] > n_video:
        out[:, :, n_video:] = F.scaled_dot_product_attention(q[:, :, n_video:], k, v)


def window_blocks(g: Box, box: Box, device: torch.device | str = "cpu") -> Tensor:
    """(prod(g), prod(box)) int32: bricks row-major, each row ascending and without repetition."""
    t, h, w = (  # (g, w) each: which bricks along this axis
        (torch.tensor(window_starts(n, w))[:, None] + torch.arange(w)).to(device, torch.int32)
        for n, w in zip(g, box, strict=True)
    )
    rows = (t[:, None, None, :, None, None] * g[1] + h[:, None, None, :, None]) * g[2]
    return (rows + w[:, None, None, :]).reshape(math.prod(g), math.prod(box))


def pairs_by_window(problem: Problem, clips: slice, q: Tensor) -> Iterator[tuple]:
    """(box, clips, heads): the (clip, head) pairs of a part that share a window.

    At most so many at a time as fit COPIED bytes, indices on q's device.
    """
    pairs: dict[Box, list[tuple[int, int]]] = {}
    for clip, boxes in enumerate(problem.windows[clips].tolist()):
        for head, box in enumerate(boxes):
            pairs.setdefault(tuple(box), []).append((clip, head))
    at_once = max(COPIED // (3 * q.shape[2] * q.shape[3] * q.element_size()), 1)
    for box, members in sorted(pairs.items()):
        for some in torch.tensor(members).split(at_once):
            yield box, *some.to(q.device).unbind(1)
