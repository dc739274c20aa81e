"""Oracles in plain torch, written out: what fast code is compared with."""

import math

from torch import Tensor

from s2flow.attention import Problem, window_attention
from s2flow.coverage import coverage_of_masses
from s2flow.grid import Box, brick_grid, brick_ids, window_mask


def coverage_of_all_boxes(A: Tensor, rows: Tensor, tokens: Box, brick: Box) -> Tensor:
    """Eq. 8 for every box size at once: (B, heads, g_t, g_h, g_w), entry [w_t-1, w_h-1, w_w-1].

    A: (B, heads, R, L) attention of the sampled rows, from `attention_rows`. The twin, with its rows
    written out, of `coverage_by_heads`.
    """
    ids, bricks = brick_ids(tokens, brick).to(A.device), math.prod(brick_grid(tokens, brick))
    pooled = A.new_zeros(*A.shape[:-1], bricks).index_add_(-1, ids, A)
    return coverage_of_masses(pooled, rows, tokens, brick)


def coverage_exact(A: Tensor, tokens: Box, brick: Box, box: Box) -> Tensor:
    """Eq. 8 literally for one box, from the whole attention map: the oracle of the tests.

    A: (B, heads, L, L), rows summing to 1 or less; returns (B, heads).
    """
    M = window_mask(tokens, brick, box).to(A)
    return (A * M).sum((-1, -2)) / A.sum((-1, -2))


def windowed(q, k, v, windows, tokens, brick, backend="auto", text=None, ordered=False, lse=False):
    """`window_attention` of a problem that is written out beside it."""
    problem = Problem.of(q, tokens, brick, windows, text, ordered)
    return window_attention(q, k, v, problem, backend, lse)


def of_backend(module, q, k, v, windows, tokens, brick, text=None, lse=False):
    """(out, lse) of a backend's module, without the dispatcher."""
    return module.window_attention(q, k, v, Problem.of(q, tokens, brick, windows, text), lse)


def kind(q, brick, tokens=None):
    """The problem of such q before any window is chosen."""
    return Problem(tokens or brick, brick, q.shape[-1], q.dtype, q.device)
