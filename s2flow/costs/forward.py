"""One forward of the transformer: FLOPs at any density, bytes moved, peak memory, and communication.

With d the width, e bytes per number, F the width of the feed-forward and L the video tokens of a batch:

    linear       2 L x (weights applied to video tokens): Wan 6 d^2 + 2 d F, HunyuanVideo 12 d^2 a layer
    attention    4 L^2 d f a layer, f the density of the windows; joint text is always dense:
                 (f Lv^2 + 2 Lv Lt + Lt^2) / (Lv + Lt)^2 of the dense one
    moved        weights once a pass; q, k, v and output of self-attention once a layer, at any density;
                 the inputs and outputs of every other operation (`trace`)
    peak, Wan in bfloat16, bytes a token: max(22 d, 8 d + 4 F) + rotary tables of 8 bytes x head_dim.
                 22 d: residual, the block's input, branch, its input and the last branch (10 d), plus
                 gate product, residual and their sum in float32 (12 d). 8 d + 4 F: both sides of GELU
    peak, HunyuanVideo in bfloat16: 36 d in single blocks: both residuals, norm, MLP (8 d), q, k, v and
                 their input (22 d), plus rotary embedding in float32 (14 d)
    sent         per rank of k under Ulysses (`backbones.ulysses`). Per layer: a rank's tokens of q, k,
                 v to the ranks with their heads, 3 Lv/k d (1 - 1/k); other ranks' tokens of its heads'
                 output, Lv (1 - 1/k) d/k; its heads of the text's output to each other rank. Per pass:
                 its tokens of the velocity to each other rank
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from s2flow.attention.tiled import COPIED
from s2flow.costs.blank import Answers
from s2flow.costs.trace import Moved, attention_flops, tracing

FUSED_BACKENDS = ("triton", "flex", "fa4")  # kernels that read q, k, v without a copy


@dataclass(frozen=True)
class Forward:
    """One guided velocity: FLOPs outside and inside self-attention (dense), peak bytes.

    attending: bytes alive when self-attention starts; video: tokens, without text; q: (B, heads, L, d)
    of self-attention, text included; size: bytes of one of its numbers; calls: self-attentions of all
    layers and passes; layers: of the model; features: numbers per token of the velocity.
    """

    linear: int
    attention: int
    peak: int
    attending: int
    video: int
    q: tuple[int, int, int, int]
    size: int
    moved: Moved = Moved()
    calls: int = 0
    layers: int = 1
    features: int = 0

    def flops(self, f: float = 1.0) -> float:
        """FLOPs with windows of density f."""
        return self.linear + self.attending_flops(f)

    def attending_flops(self, f: float = 1.0) -> float:
        """FLOPs of self-attention with windows of density f; attention to and from text is dense."""
        joint = self.q[2]
        video, text = self.video, joint - self.video
        return self.attention * (f * video**2 + 2 * video * text + text**2) / joint**2

    def peak_with_windows(self, backend: str) -> int:
        """Peak bytes with windows: `tiled` copies q, k, v and output of a few heads at a time."""
        if backend in FUSED_BACKENDS:
            return self.peak
        heads, tensor = self.q[1], self.size * math.prod(self.q)
        heads_at_once = min(max(heads * COPIED["cuda"] // (2 * tensor), 1), heads)
        return max(self.peak, self.attending + tensor + 5 * tensor * heads_at_once // heads)

    def sent(self, k: int) -> int:
        """Bytes that the busiest of k ranks sends to others."""
        if k == 1:
            return 0
        B, heads, L, d = self.q
        rank_tokens, rank_heads = -(-self.video // k), heads // k
        scattered = 3 * rank_tokens * (heads - rank_heads) * d
        returned = (self.video - rank_tokens) * rank_heads * d
        returned += (L - self.video) * rank_heads * d * (k - 1)  # text
        gathered = rank_tokens * self.features * (k - 1)
        passes = self.calls // self.layers
        return B * self.size * (self.calls * (scattered + returned) + passes * gathered)


def forward_cost(backbone: Any, shape: tuple, batch: int, guidance: float) -> Forward:
    """One `backbone.velocity` of a latent (C, T, h, w) on the meta device."""
    condition = backbone.blank_condition(batch, guidance)
    z = torch.empty(batch, *shape, device=backbone.device)
    calls = []
    with tracing(weights=backbone.transformer) as trace:

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            size = q.element_size()
            calls.append((attention_flops(q, k), trace.live, 4 * q.nbytes, tuple(q.shape), size))
            return torch.empty_like(q)

        with Answers(), backbone.router.replacing(attend):
            backbone.velocity(z, 1.0, condition)
    flops, live, moved, shapes, sizes = zip(*calls, strict=True)
    return Forward(
        linear=trace.flops,
        attention=sum(flops),
        peak=trace.peak,
        attending=max(live),
        video=math.prod(backbone.token_grid(shape)),
        q=shapes[-1],
        size=sizes[-1],
        moved=trace.moved + Moved(attention=sum(moved)),
        calls=len(calls),
        layers=backbone.router.layers,
        features=backbone.transformer.proj_out.out_features,
    )
