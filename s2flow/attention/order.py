"""Brick order: the tokens of one brick stand together, bricks row-major, text behind them all.

A kernel then reads a window as w_t w_h runs of w_w bricks, each run contiguous in memory. On ragged
grids the last bricks of an axis are smaller; nothing is padded: brick i is tokens offset[i] onwards.
A whole forward can stay in it (`AttentionRouter.ordered`): tokens are permuted once, not per layer.
"""

import functools

import torch
from torch import Tensor

from s2flow.grid import Box, brick_ids


@functools.lru_cache(maxsize=16)
def brick_order(tokens: Box, brick: Box, device: torch.device) -> tuple[Tensor, Tensor]:
    """(order, inverse), both (L,): x[order] is in brick order, x[order][inverse] is x."""
    order = brick_ids(tokens, brick).argsort(stable=True)
    return order.to(device), order.argsort().to(device)


@functools.lru_cache(maxsize=16)
def brick_offsets(tokens: Box, brick: Box, device: torch.device) -> Tensor:
    """(bricks + 1,) int32: where each brick starts in brick order, and the end of the last."""
    sizes = torch.bincount(brick_ids(tokens, brick))
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).to(device, torch.int32)


def reordered(x: Tensor, index: Tensor, dim: int = 2) -> Tensor:
    """The first len(index) tokens of x in another order; what stands behind them, text, stays."""
    n = len(index)
    if x.shape[dim] == n:
        return x.index_select(dim, index)
    out, rest = torch.empty_like(x), x.shape[dim] - n
    out.narrow(dim, 0, n).copy_(x.index_select(dim, index))
    out.narrow(dim, n, rest).copy_(x.narrow(dim, n, rest))
    return out


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the CPU on the device, for which the host does not wait."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
