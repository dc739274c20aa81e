"""Oracles in plain torch, written out: what fast code is compared with."""

import math

import torch
from torch import Tensor

from s2flow.attention import Problem, window_attention
from s2flow.coverage import coverage_of_masses
from s2flow.grid import Box, brick_grid, brick_ids, window_mask


def coverage_of_all_boxes(A: Tensor, rows: Tensor, tokens: Box, brick: Box) -> Tensor:
    """`coverage_by_heads` from A, (B, heads, R, L): its rows, from `attention_rows`, written out."""
    ids, bricks = brick_ids(tokens, brick), math.prod(brick_grid(tokens, brick))
    pooled = A.new_zeros(*A.shape[:-1], bricks).index_add_(-1, ids, A)
    return coverage_of_masses(pooled, rows, tokens, brick)


def coverage_exact(A: Tensor, tokens: Box, brick: Box, box: Box) -> Tensor:
    """Eq. 8 literally for one box, (B, heads), from the whole attention map, (B, heads, L, L)."""
    M = window_mask(tokens, brick, box).to(A)
    return (A * M).sum((-1, -2)) / A.sum((-1, -2))


def qkv(tokens, heads=3, n_text=0, batch=2, d=16, seed=0, scale=1.5):
    """Random q, k, v of [video, text] tokens, q and k scaled."""
    shape = (3, batch, heads, math.prod(tokens) + n_text, d)
    q, k, v = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return scale * q, scale * k, v


def off(found, truth) -> float:
    """Relative error, by norms in float64."""
    return float((found.double() - truth.double()).norm() / truth.double().norm())


def windowed(q, k, v, windows, tokens, brick, backend="auto", text=None, ordered=False):
    """`window_attention` of a problem that is written out beside it."""
    problem = Problem.of(q, tokens, brick, windows, text, ordered)
    return window_attention(q, k, v, problem, backend)


def of_backend(module, q, k, v, windows, tokens, brick, text=None):
    """A backend's module, without the dispatcher."""
    return module.window_attention(q, k, v, Problem.of(q, tokens, brick, windows, text))


def kind(q, brick, tokens=None):
    """The problem of such q before any window is chosen."""
    return Problem(tokens or brick, brick, q.shape[-1], q.dtype, q.device)
