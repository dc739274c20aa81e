"""Sparse-VideoGen-like: per step, layer and head a spatial or a temporal pattern, chosen online.

    out_full(i) = softmax(q_i k^T / sqrt(d)) v             on a few sampled query rows i
    out_w(i)    = the same inside pattern w
    choice      = the pattern of the least  sum_i |out_w(i) - out_full(i)|^2

The patterns are boxes of equal density f: few frames, whole (exponents 1, 0, 0), or all frames, a small
neighbourhood of each (0, 1/2, 1/2); `windows.exponents` may name others.

Deviation: Sparse VideoGen (arXiv 2502.01776) has a band of frames and a slash per spatial position,
plus the first frame for all; ours are boxes, so that all rows of a table share one attention.
"""

import itertools
import math

import torch
from torch import Tensor

from s2flow.backbones.routing import AttentionRouter
from s2flow.coverage import COVERAGE_BYTES
from s2flow.errors import UserError
from s2flow.grid import Box, window_mask
from s2flow.policies.base import HR, Case, Policy, check_candidates, spelt
from s2flow.policies.online import Online, unfilled
from s2flow.windows import candidates

PATTERNS = ((1, 0, 0), (0, 1 / 2, 1 / 2))  # the usual exponents
READS = HR
BY_VOLUME = True
OPTIONS = ("exponents",)
IGNORES = frozenset()


def label(policy: Policy) -> str:
    """With its exponents, unless they are the usual ones."""
    return spelt(policy, PATTERNS)


class Svg(Online):
    """See the module."""

    def choose(
        self, n: int, layer: int, q: Tensor, k: Tensor, v: Tensor, router: AttentionRouter
    ) -> Tensor:
        """See `Online`."""
        patterns = (self.sampled(n, layer), self.boxes, self.plan.tokens, self.plan.brick)
        if router.text is None:
            errors = output_errors(q, k, v, *patterns)
        else:
            n_video = math.prod(self.plan.tokens)
            clips = [
                [x[i : i + 1, :, : n_video + n_text] for x in (q, k, v)]
                for i, n_text in enumerate(router.text)
            ]
            errors = torch.cat([output_errors(*qkv, *patterns) for qkv in clips])
        errors = router.all_heads(errors).cpu()
        return torch.tensor(self.boxes, dtype=torch.int16)[errors.argmin(-1)]


def output_errors(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, boxes: list[Box], tokens: Box, brick: Box
) -> Tensor:
    """Squared error of the attention output on some query rows inside each box, (B, heads, boxes).

    q, k, v: (B, heads, T*H*W + n_text, d), every text token real: text keys are in every pattern.
    """
    n_text = q.shape[2] - math.prod(tokens)
    masks = [window_mask(tokens, brick, box, rows).to(q.device) for box in boxes]
    masks = [torch.nn.functional.pad(M, (0, n_text), value=True) for M in masks]
    one = 4 * len(q) * k.shape[2] * (3 * len(rows) + 2 * q.shape[-1])  # bytes of a head
    n = max(COVERAGE_BYTES // one, 1)
    parts = []
    for h in range(0, q.shape[1], n):
        Q, K, V = (x[:, h : h + n].float() for x in (q[:, :, rows.to(q.device)], k, v))
        logits = Q * q.shape[-1] ** -0.5 @ K.transpose(-1, -2)
        full = logits.softmax(-1) @ V
        inside = [logits.masked_fill(~M, -math.inf).softmax(-1) @ V for M in masks]
        parts.append(torch.stack([(x - full).square().sum((-1, -2)) for x in inside], -1))
    return torch.cat(parts, 1)


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
    volumes = {math.prod(b) for b in itertools.product(*(range(1, n + 1) for n in g))} - {whole}
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


def decide(policy: Policy, case: Case, coverage: Tensor) -> "Svg":
    """See the module."""
    return Svg(*unfilled(policy, case, coverage))
