"""Wan 2.1 text-to-video, and any pipeline with its classes, behind the backbone protocol.

Our own loop around diffusers' transformer, VAE and text encoder: the pipeline's callbacks give no
velocity, and its scheduler returns latents in the model's dtype. The model's timestep is 1000 sigma;
guidance is two passes, v = v_uncond + g (v_cond - v_uncond); text is trimmed and zero-padded to a fixed
length without a mask, so the padding length is part of the model.
"""

from dataclasses import dataclass

import torch
from diffusers import WanPipeline
from diffusers.models.transformers import transformer_wan
from torch import Tensor

from s2flow.backbones import checkpoint
from s2flow.backbones.base import Origin
from s2flow.backbones.routing import AttentionRouter
from s2flow.windows import Box

PARTS = {  # of the pipeline's folder, with their classes
    "transformer": "WanTransformer3DModel",
    "vae": "AutoencoderKLWan",
    "text_encoder": "UMT5EncoderModel",
    "tokenizer": None,
}


def identity(origin: Origin) -> str:
    """See `base`."""
    return checkpoint.identity(origin, PARTS, WanPipeline)


def from_origin(origin: Origin, device: str) -> "WanBackbone":
    """See `base`."""
    pipeline = checkpoint.open_pipeline(origin, device, PARTS, WanPipeline)
    return WanBackbone(origin.name, pipeline)


@dataclass(frozen=True)
class WanCondition:
    """Text states (B, L, D) of the prompts and, under guidance, of the negative prompt."""

    positive: Tensor
    negative: Tensor | None
    guidance: float


class WanBackbone:
    """A loaded `WanPipeline`; see `base.Backbone` for the contract."""

    def __init__(self, name: str, pipeline: WanPipeline, text_length: int = 512) -> None:
        self.name, self.pipeline, self.text_length = name, pipeline, text_length
        self.transformer, self.vae = pipeline.transformer, pipeline.vae
        self.device = str(self.transformer.device)
        self.ropes = [self.transformer.rope]
        self.patch: Box = tuple(self.transformer.config.patch_size)
        self.frame_step: int = self.vae.config.scale_factor_temporal
        self.scale_s: int = self.vae.config.scale_factor_spatial
        self.multiple = self.scale_s * self.patch[1]
        self.max_side = self.multiple * self.transformer.config.rope_max_seq_len
        self.router = AttentionRouter(
            transformer_wan, [block.attn1 for block in self.transformer.blocks]
        )
        self._mean, self._std = (
            torch.tensor(x).view(1, -1, 1, 1, 1)
            for x in (self.vae.config.latents_mean, self.vae.config.latents_std)
        )

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str], negative: str, guidance: float) -> WanCondition:
        """See `base.Backbone`."""
        positive, unconditional = self.pipeline.encode_prompt(
            prompts,
            [negative] * len(prompts),
            do_classifier_free_guidance=guidance != 1.0,
            max_sequence_length=self.text_length,
            device=self.device,
        )
        return WanCondition(positive, unconditional, guidance)

    def blank_condition(self, batch: int, guidance: float) -> WanCondition:
        """A condition of the right shapes, to plan with (`s2flow.costs`)."""
        width, dtype = self.transformer.config.text_dim, self.transformer.dtype
        text = torch.empty(batch, self.text_length, width, device=self.device, dtype=dtype)
        return WanCondition(text, None if guidance == 1.0 else text, guidance)

    @torch.no_grad()
    def velocity(self, z: Tensor, sigma: float, condition: WanCondition) -> Tensor:
        """See `base.Backbone`. Attention is observed in the conditional pass only."""
        v = self._forward(z, sigma, condition.positive)
        if condition.negative is None or condition.guidance == 1.0:
            return v
        with self.router.observing(None):
            v_uncond = self._forward(z, sigma, condition.negative)
        return v_uncond + condition.guidance * (v - v_uncond)

    def _forward(self, z: Tensor, sigma: float, text: Tensor) -> Tensor:
        timestep = torch.full((len(z),), 1000 * sigma, device=z.device, dtype=torch.float32)
        return self.transformer(
            hidden_states=z.to(self.transformer.dtype),
            timestep=timestep,
            encoder_hidden_states=text,
            return_dict=False,
        )[0].float()

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """See `base.Backbone`."""
        x = (video.movedim(-1, 1).to(self.device, self.vae.dtype) * 2).sub_(1)
        z = self.vae.encode(x).latent_dist.mode().float()
        return (z - self._mean.to(z)) / self._std.to(z)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """See `base.Backbone`."""
        z = latent.to(self.device)
        x = self.vae.decode((z * self._std.to(z) + self._mean.to(z)).to(self.vae.dtype)).sample
        return x.float().div_(2).add_(0.5).clamp_(0, 1).movedim(1, -1)  # in place: 5 GiB at 2K

    def latent_shape(self, height: int, width: int, frames: int) -> tuple[int, int, int, int]:
        """See `base.Backbone`."""
        t = (frames - 1) // self.frame_step + 1
        return self.vae.config.z_dim, t, height // self.scale_s, width // self.scale_s

    def token_grid(self, latent_shape: tuple[int, int, int, int]) -> Box:
        """See `base.Backbone`."""
        return tuple(n // p for n, p in zip(latent_shape[1:], self.patch, strict=True))

    def oov_rate(self, prompt: str) -> float:
        """0: Wan's vocabulary is open."""
        return 0.0
