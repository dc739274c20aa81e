"""What the adapters of Wan and HunyuanVideo share: a loaded diffusers pipeline behind the protocol.

A family adds its text, its call of the transformer and its latents' scale. Guidance is two passes,

    v = v_uncond + g (v_cond - v_uncond),

and attention is observed in the conditional one only.
"""

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from s2flow.backbones.caches import told
from s2flow.backbones.ordering import TokenOrder
from s2flow.backbones.routing import AttentionRouter
from s2flow.grid import Box


@dataclass(frozen=True)
class Condition:
    """A family's text of the prompts and of the negative prompt; None: one pass, without guidance."""

    positive: Any
    negative: Any
    guidance: float
    guidance_2: float | None = None  # of the second expert; None: the same


class PipelineBackbone:
    """See `base.Backbone`. module: of diffusers, where the transformer's class is defined.

    A family adds `encode_prompt`; `_layers(transformer)`, self-attentions; `_forward(z, sigma, text)`,
    one pass in float32; `_normalised(raw)`, a latent in the flow's scale; and its inverse `_raw(z)`.
    """

    max_side = math.inf  # positions are computed, not looked up
    boundary: float | None = None  # the noise level below which a second expert runs
    passes = ("cond", "uncond")  # names of guidance's passes, for caches

    def __init__(
        self,
        name: str,
        pipeline: Any,
        module: ModuleType,
        patch: Box,
        channels: int,
        strides: tuple[int, int],
    ) -> None:
        self.name, self.pipeline, self.vae = name, pipeline, pipeline.vae
        self.transformer = pipeline.transformer
        self.transformer_2 = getattr(pipeline, "transformer_2", None)
        self.experts = [m for m in (self.transformer, self.transformer_2) if m is not None]
        # where it computes, which is not where its weights lie if it is offloaded
        self.device = str(getattr(pipeline, "_execution_device", self.transformer.device))
        self.embeds: dict[str, Tensor] = {}
        self.patch, self.channels, (self.frame_step, self.scale_s) = patch, channels, strides
        self.multiple = self.scale_s * patch[1]
        self.ropes = [m.rope for m in self.experts]
        self.router = AttentionRouter(module, *map(self._layers, self.experts))
        self.router.order = TokenOrder(*self.experts)

    def _second(self, sigma: float) -> bool:
        """Whether the second expert has taken over at this noise level."""
        return self.boundary is not None and sigma < self.boundary

    def release(self) -> None:
        """See `base.Backbone`."""
        self.router.remove()

    @torch.no_grad()
    def velocity(self, z: Tensor, sigma: float, condition: Condition) -> Tensor:
        """See `base.Backbone`."""
        v = self._told(z, sigma, condition.positive, self.passes[0])
        g = condition.guidance
        if condition.guidance_2 is not None and self._second(sigma):
            g = condition.guidance_2
        if condition.negative is None or g == 1.0:
            return v
        with self.router.observing(None):
            v_uncond = self._told(z, sigma, condition.negative, self.passes[1])
        return v_uncond + g * (v - v_uncond)

    def _told(self, z: Tensor, sigma: float, text: Any, which: str) -> Tensor:
        """One pass, inside the context that the transformer's cache hooks need."""
        model = self.transformer_2 if self._second(sigma) else self.transformer
        with told(self.pipeline, model, which, sigma):
            return self._forward(z, sigma, text)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """See `base.Backbone`."""
        x = (video.movedim(-1, 1).to(self.device, self.vae.dtype) * 2).sub_(1)
        return self._normalised(self.vae.encode(x).latent_dist.mode().float())

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """See `base.Backbone`."""
        x = self.vae.decode(self._raw(latent.to(self.device)).to(self.vae.dtype)).sample
        return x.float().div_(2).add_(0.5).clamp_(0, 1).movedim(1, -1)  # in place: 5 GiB at 2K

    def latent_shape(self, height: int, width: int, frames: int) -> tuple[int, int, int, int]:
        """See `base.Backbone`."""
        t = (frames - 1) // self.frame_step + 1
        return self.channels, t, height // self.scale_s, width // self.scale_s

    def token_grid(self, latent_shape: tuple[int, int, int, int]) -> Box:
        """See `base.Backbone`."""
        return tuple(n // p for n, p in zip(latent_shape[1:], self.patch, strict=True))

    def oov_rate(self, prompt: str) -> float:
        """0: the vocabulary is open."""
        return 0.0
