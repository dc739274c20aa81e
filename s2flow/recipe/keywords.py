"""Keywords of `s2flow.generate`, for type checkers; by `python -m s2flow.recipe .`."""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict


class Knobs(TypedDict, total=False):
    """Knobs that describe a clip (docs/knobs.md), and diffusers' names of some of them."""

    method: str | dict[str, Any]
    windows: str | dict[str, Any]
    sparsity: float
    density: Literal["volume", "per_axis"]
    brick_low: Sequence[int] | None
    brick_high: Sequence[int] | None
    coverage_rows: int
    attention: Literal["auto", "fa4", "triton", "flex", "tiled", "reference"]
    rope: Literal["none", "interpolate", "ntk"]
    temperature: Any
    solver: Literal["lri", "euler", "ab2", "ab3", "lri_cv", "unipc", "heun"]
    order: int
    stencil: Literal["grid", "central"]
    lr_time: Literal["sigma", "snr"]
    upsample: Literal["bilinear", "nearest", "bicubic"]
    t_i: int | None
    handoff: Literal["x0", "latent", "noisy"]
    noise: Literal["fresh", "aligned"]
    adain: bool
    scales: Sequence[float] | None
    switches: Sequence[float] | None
    shift_high: float | None
    steps: int | None
    shift: float | None
    guidance: float | None
    guidance_2: float | None
    negative_prompt: str | None
    low: Sequence[int] | None
    high: Sequence[int] | None
    frames: int | None
    vae_tile: Sequence[int] | None
    num_frames: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    guidance_scale_2: float | None
    prompt_embeds: Any
    prompt_embeds_2: Any
    prompt_embeds_mask: Any
    prompt_embeds_mask_2: Any
    prompt_attention_mask: Any
    pooled_prompt_embeds: Any
    negative_prompt_embeds: Any
    negative_prompt_embeds_2: Any
    negative_prompt_embeds_mask: Any
    negative_prompt_embeds_mask_2: Any
