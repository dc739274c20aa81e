"""Block lists: the key bricks of every query brick, computed from the window, never searched for.

    key bricks of brick (i_t, i_h, i_w) = (s_t + 0 ... w_t - 1) x (s_h + ...) x (s_w + ...),
    s = window_starts(g, w) on each axis

All heads and clips of one window share one list: bricks x prod(window) int32, 6.5 MB at 460,800 tokens
and f = 1/8. Which heads go together is here too.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from s2flow.grid import Box, window_starts

COPIED = 2**30  # bytes of the queries, keys and values copied at once


def window_blocks(g: Box, box: Box, device: torch.device | str = "cpu") -> Tensor:
    """(prod(g), prod(box)) int32: bricks row-major, each row ascending and without repetition."""
    axes = [
        torch.tensor(window_starts(n, w), dtype=torch.int32)[:, None]
        + torch.arange(w, dtype=torch.int32)
        for n, w in zip(g, box, strict=True)
    ]
    t, h, w = (axis.to(device) for axis in axes)  # (g, w) each: which bricks along this axis
    rows = (t[:, None, None, :, None, None] * g[1] + h[:, None, None, :, None]) * g[2]
    return (rows + w[:, None, None, :]).reshape(math.prod(g), math.prod(box))


def pairs_by_window(table: Tensor, at_once: int) -> Iterator[tuple[Box, Tensor, Tensor]]:
    """(box, clips, heads): the (clip, head) pairs that share a window, at most `at_once` at a time."""
    pairs: dict[Box, list[tuple[int, int]]] = {}
    for clip, boxes in enumerate(table.tolist()):
        for head, box in enumerate(boxes):
            pairs.setdefault(tuple(box), []).append((clip, head))
    for box, members in sorted(pairs.items()):
        for some in torch.tensor(members).split(max(at_once, 1)):
            yield box, *some.unbind(1)
