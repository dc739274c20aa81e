"""Token grids, bricks and boxes: the arithmetic that windows, coverage and attention share.

Tokens lie on a grid (T, H, W), row-major, grouped in bricks (b_t, b_h, b_w): g = ceil(n / b) bricks
along an axis of n tokens, the last one partly empty where b does not divide n (a ragged grid). A box
(w_t, w_h, w_w) is a window's sides in bricks. The window of query brick i along an axis is

    start = clamp(i - floor(w/2), 0, g - w),        keys = bricks start ... start + w - 1
"""

import math

import torch
from torch import Tensor

Box = tuple[int, int, int]


def brick_grid(tokens: Box, brick: Box) -> Box:
    """Number of bricks per axis, the last ones partly empty on ragged grids."""
    return tuple(math.ceil(n / b) for n, b in zip(tokens, brick, strict=True))


def window_starts(g: int, w: int) -> list[int]:
    """First brick of the window of each query brick along one axis, shifted inward."""
    return [min(max(i - w // 2, 0), g - w) for i in range(g)]


def realised_density(tokens: Box, brick: Box, box: Box) -> float:
    """Exact share of valid query-key pairs inside the window, in (0, 1]."""
    f = 1.0
    for n, b, w in zip(tokens, brick, box, strict=True):
        starts = enumerate(window_starts(math.ceil(n / b), w))
        pairs = ((min(i * b + b, n) - i * b) * (min((s + w) * b, n) - s * b) for i, s in starts)
        f *= sum(pairs) / n**2
    return f


def brick_of_token(tokens: Box, brick: Box) -> Tensor:
    """(L, 3) brick coordinates of every token, row-major in (t, h, w)."""
    axes = [torch.arange(n) // b for n, b in zip(tokens, brick, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)


def brick_ids(tokens: Box, brick: Box) -> Tensor:
    """(L,) the brick of every token, tokens and bricks row-major."""
    g, where = brick_grid(tokens, brick), brick_of_token(tokens, brick)
    return (where[:, 0] * g[1] + where[:, 1]) * g[2] + where[:, 2]


def brick_slots(tokens: Box, brick: Box) -> Tensor:
    """(bricks, prod(brick)) tokens of every brick, row-major; -1 where a ragged brick has none."""
    g = brick_grid(tokens, brick)
    volume = torch.full([n * b for n, b in zip(g, brick, strict=True)], -1)
    T, H, W = tokens
    volume[:T, :H, :W] = torch.arange(math.prod(tokens)).view(tokens)
    sides = [n for pair in zip(g, brick, strict=True) for n in pair]
    return volume.view(sides).permute(0, 2, 4, 1, 3, 5).reshape(math.prod(g), -1)


def window_mask(tokens: Box, brick: Box, box: Box, rows: Tensor | None = None) -> Tensor:
    """M of Eq. 7: (L, L) bool, entry [i, j] says whether query i may see key j; rows: of these i."""
    where = brick_of_token(tokens, brick)
    mine = where if rows is None else where[rows]
    mask = torch.ones(len(mine), len(where), dtype=torch.bool)
    for axis, (g, w) in enumerate(zip(brick_grid(tokens, brick), box, strict=True)):
        start = torch.tensor(window_starts(g, w))[mine[:, axis]][:, None]
        key = where[:, axis][None, :]
        mask &= (key >= start) & (key < start + w)
    return mask
