"""Sparse-VideoGen-like: per step, layer and head a spatial or a temporal pattern, chosen online.

    out_full(i) = softmax(q_i k^T / sqrt(d)) v             on a few sampled query rows i
    out_w(i)    = the same inside pattern w
    choice      = the pattern of the least  sum_i |out_w(i) - out_full(i)|^2

The patterns are boxes of equal density f: few frames, whole (exponents 1, 0, 0), or all frames, a small
neighbourhood of each (0, 1/2, 1/2); `windows.exponents` may name others.

Deviation: Sparse VideoGen (arXiv 2502.01776) has a band of frames and a slash per spatial position,
plus the first frame for all; ours are boxes, so that all rows of a table share one attention.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from s2flow.attention.batches import parts
from s2flow.attention.problem import Problem
from s2flow.backbones.routing import AttentionRouter
from s2flow.coverage import COVERAGE_BYTES
from s2flow.errors import UserError
from s2flow.grid import Box, window_mask
from s2flow.policies.base import HR, Case, Policy, check_candidates
from s2flow.policies.online import Online
from s2flow.windows import all_boxes, candidates

READS, BY_VOLUME, OPTIONS, IGNORES = HR, True, ("exponents",), frozenset()
USUAL = ((1, 0, 0), (0, 1 / 2, 1 / 2))


class Svg(Online):
    """See the module."""

    def choose(self, n: int, layer: int, q, k, v, router: AttentionRouter) -> Tensor:
        """See `Online`."""
        patterns = (self.sampled(n, layer), self.boxes, self.plan.tokens, self.plan.brick)
        problem = Problem.of(q, self.plan.tokens, self.plan.brick, text=router.text)
        clips = (output_errors(*qkv, *patterns) for _, *qkv in parts(problem, q, k, v))
        errors = router.all_heads(torch.cat(list(clips))).cpu()
        return torch.tensor(self.boxes, dtype=torch.int16)[errors.argmin(-1)]


def output_errors(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, boxes: list[Box], tokens: Box, brick: Box
) -> Tensor:
    """Squared error of the attention output on some query rows inside each box, (B, heads, boxes).

    q, k, v: (B, heads, T*H*W + n_text, d), every text token real: text keys are in every pattern.
    """
    n_text = q.shape[2] - math.prod(tokens)
    masks = (window_mask(tokens, brick, box, rows).to(q.device) for box in boxes)
    masks = [F.pad(M, (0, n_text), value=True) for M in masks]
    one = 4 * len(q) * k.shape[2] * (3 * len(rows) + 2 * q.shape[-1])  # bytes of a head
    n = max(COVERAGE_BYTES // one, 1)
    errors = []
    for h in range(0, q.shape[1], n):
        Q, K, V = (x[:, h : h + n].float() for x in (q[:, :, rows.to(q.device)], k, v))
        logits = Q * q.shape[-1] ** -0.5 @ K.transpose(-1, -2)
        full = logits.softmax(-1) @ V
        inside = [logits.masked_fill(~M, -math.inf).softmax(-1) @ V for M in masks]
        errors.append(torch.stack([(x - full).square().sum((-1, -2)) for x in inside], -1))
    return torch.cat(errors, 1)


decide = Svg


def check(policy: Policy, case: Case) -> Policy:
    """Raises UserError unless every pattern has a box of volume f, naming the nearest f that has."""
    if case.f >= 1:
        return policy
    check_candidates(policy, case)
    exponents, g, whole = policy.exponents, case.low_grid, math.prod(case.low_grid)

    def reachable(x: float) -> bool:
        try:
            return len(candidates(x, list(exponents), g)) == len(set(exponents)) > 1
        except UserError:
            return False

    if len(set(exponents)) < 2:
        raise UserError(
            "windows=svg chooses between patterns and has one; type "
            "windows.exponents='[[1,0,0],[0,0.5,0.5]]'"
        )
    if reachable(case.f):
        return policy
    volumes = {math.prod(b) for b in all_boxes(g)} - {whole}
    for v in sorted(volumes, key=lambda v: abs(math.log(v / whole / case.f))):
        if reachable(v / whole):
            raise UserError(
                f"windows=svg: not every pattern has a box of the {g[0]}x{g[1]}x{g[2]} brick grid "
                f"that keeps f = {case.f:.4g}; the nearest f where each has is {v / whole:.4g} "
                f"(sparsity={v / whole:.4g} with density=volume)"
            )
    raise UserError(
        f"windows=svg: the patterns have no boxes of one volume on the {g[0]}x{g[1]}x{g[2]} brick "
        "grid; type windows=adaptive, or smaller bricks"
    )
