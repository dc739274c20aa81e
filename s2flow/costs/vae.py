"""Cost of the autoencoder: one tile gives peak memory, and FLOPs and bytes per pixel.

The loop over tiles, its concatenations and our conversions are traced without the networks; bytes moved
by blending are not counted.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from s2flow.costs.trace import Trace, tracing


def vae_cost(vae: Any, work: Callable[[], Any]) -> Trace:
    """`work`, which calls the autoencoder, traced; its networks run on one tile only."""
    with tracing() as trace, contextlib.ExitStack() as stack:
        if hasattr(vae, "tile_sample_min_height"):
            for side in ("encoder", "decoder"):
                stand_in = _stand_in(vae, side, trace)
                stack.enter_context(patch.object(getattr(vae, side), "forward", stand_in))
            for name in ("blend_v", "blend_h", "blend_t"):
                stack.enter_context(patch.object(vae, name, lambda a, b, extent: b, create=True))
        work()
    return trace


def _stand_in(vae: Any, side: str, trace: Trace) -> Callable:
    """A forward of empty outputs, with the costs of the largest tile so far."""
    run, measured = getattr(vae, side).forward, {}

    def forward(x: Tensor, feat_cache=None, feat_idx=None, first_chunk=False) -> Tensor:
        cached = feat_cache is not None
        volume = math.prod(x.shape[-2:] if cached else x.shape[2:])
        if not measured or volume > max(measured):
            measured.clear()  # border tiles, and the last frames, are smaller
            measured[volume] = _interior(run, vae, side, x, cached)  # not under `trace`
        ((largest, (peak, flops, moved)),) = measured.items()
        trace.add_transient(peak * volume // largest)
        out = x.new_empty(_shape_after(vae, side, x.shape, cached, first_chunk))
        pixels = math.prod((x if side == "encoder" else out).shape[2:])
        trace.flops += int(flops * pixels)
        trace.bytes["products"] += int(moved * pixels)
        return out

    return forward


def _shape_after(vae: Any, side: str, shape: tuple, cached: bool, first: bool) -> tuple:
    """Output shape of encoder or decoder; cached: called chunk by chunk, as Wan's."""
    B, _, t, h, w = shape
    config = vae.config
    s = vae.spatial_compression_ratio // (getattr(config, "patch_size", None) or 1)
    if side == "encoder":
        channels = 2 * (config.z_dim if "z_dim" in config else config.latent_channels)
        return B, channels, 1 if cached else (t - 1) // 4 + 1, h // s, w // s
    frames = (1 if first else 4) if cached else 4 * (t - 1) + 1
    return B, config.out_channels, frames, h * s, w * s


def _interior(
    run: Callable, vae: Any, side: str, x: Tensor, cached: bool
) -> tuple[int, float, float]:
    """(peak bytes, FLOPs, bytes moved) of the network on one tile.

    FLOPs and bytes are per pixel of the video. A cached network runs on three chunks: at the last one
    its caches are full.
    """
    B, C, t, h, w = x.shape
    flops_before = moved_before = 0
    with torch.utils._python_dispatch._disable_current_modes(), tracing() as inner:
        if not cached:
            out = run(chunk_input := x.new_empty(x.shape))
        else:
            cache = [None] * vae._cached_conv_counts[side]
            for chunk in range(3):
                flops_before, moved_before = inner.flops, inner.moved.total
                frames = 4 if side == "encoder" and chunk else 1
                first = {"first_chunk": chunk == 0} if side == "decoder" else {}
                chunk_input = x.new_empty(B, C, frames, h, w)
                out = run(chunk_input, feat_cache=cache, feat_idx=[0], **first)
        pixels = math.prod((out if side == "decoder" else chunk_input).shape[2:])
        moved = (inner.moved.total - moved_before) / pixels
        return inner.peak - chunk_input.nbytes, (inner.flops - flops_before) / pixels, moved
