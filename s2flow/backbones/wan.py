"""Wan 2.1 and 2.2 text-to-video, and any pipeline with their classes, behind the backbone protocol.

Our own loop around diffusers' transformer, VAE and text encoder: the pipeline's callbacks give no
velocity, and its scheduler returns latents in the model's dtype. The model's timestep is 1000 sigma;
guidance is two passes, v = v_uncond + g (v_cond - v_uncond); text is trimmed and zero-padded to a fixed
length without a mask, so the padding length is part of the model.

Wan 2.2 A14B is two transformers of one shape: at sigma >= boundary_ratio the first one runs, below it
the second, with a guidance of its own. LR and HR step on the same sigmas, so step n has the same expert
in both, and the plan's (step, layer) is that expert's layer. Around the switch, differences of the LR
flow reach over both experts. Wan 2.2 5B is told a timestep per token by the stock pipeline; in
text-to-video they are all equal, and one per clip says the same without 8 GB of modulations at 2K.
"""

from dataclasses import dataclass

import torch
from diffusers import WanPipeline
from diffusers.models.transformers import transformer_wan
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor

from s2flow.backbones import checkpoint
from s2flow.backbones.base import Origin, beyond
from s2flow.backbones.caches import told
from s2flow.backbones.inspect import State
from s2flow.backbones.ordering import TokenOrder
from s2flow.backbones.routing import AttentionRouter
from s2flow.grid import Box

PARTS = {  # of the pipeline's folder, with their classes
    "transformer": "WanTransformer3DModel",
    "transformer_2": "WanTransformer3DModel",  # of Wan 2.2 A14B only
    "vae": "AutoencoderKLWan",
    "text_encoder": "UMT5EncoderModel",
    "tokenizer": None,
}


def identity(origin: Origin) -> str:
    """See `base`."""
    return checkpoint.identity(origin, PARTS, WanPipeline)


def state(origin: Origin) -> State:
    """See `base`."""
    return checkpoint.state(origin, PARTS, WanPipeline)


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
    guidance_2: float | None = None  # of the second expert; None: the same


class WanBackbone:
    """A loaded `WanPipeline`; see `base.Backbone` for the contract."""

    def __init__(self, name: str, pipeline: WanPipeline, text_length: int = 512) -> None:
        self.name, self.pipeline, self.text_length = name, pipeline, text_length
        self.transformer, self.vae = pipeline.transformer, pipeline.vae
        self.transformer_2 = getattr(pipeline, "transformer_2", None)
        self.boundary: float | None = getattr(pipeline, "config", {}).get("boundary_ratio")
        self.device = str(getattr(pipeline, "_execution_device", self.transformer.device))
        self.embeds: dict[str, Tensor] = {}  # given in place of text, in diffusers' names
        self.patch: Box = tuple(self.transformer.config.patch_size)
        vae = self.vae
        self.frame_step: int = (
            vae.config.scale_factor_temporal if vae else pipeline.vae_scale_factor_temporal
        )
        self.scale_s: int = (
            vae.config.scale_factor_spatial if vae else pipeline.vae_scale_factor_spatial
        )
        self.multiple = self.scale_s * self.patch[1]
        self.max_side = self.multiple * self.transformer.config.rope_max_seq_len
        experts = [m for m in (self.transformer, self.transformer_2) if m is not None]
        self.ropes = [m.rope for m in experts]
        self.router = AttentionRouter(
            transformer_wan, *([block.attn1 for block in m.blocks] for m in experts)
        )
        self.router.order = TokenOrder(*experts)
        if self.vae is not None:
            c = self.vae.config
            self._mean, self._std = (
                torch.tensor(x).view(1, -1, 1, 1, 1) for x in (c.latents_mean, c.latents_std)
            )

    def release(self) -> None:
        """See `base.Backbone`."""
        self.router.remove()

    @torch.no_grad()
    def encode_prompt(
        self,
        prompts: list[str],
        negative: str,
        guidance: float,
        guidance_2: float | None = None,
    ) -> WanCondition:
        """See `base.Backbone`. As in the stock pipeline, guidance = 1 turns off both experts'."""
        given = self.embeds
        positive, unconditional = self.pipeline.encode_prompt(
            None if "prompt_embeds" in given else prompts,
            None if "negative_prompt_embeds" in given else [negative] * len(prompts),
            do_classifier_free_guidance=guidance != 1.0,
            max_sequence_length=self.text_length,
            device=self.device,
            **given,
        )
        dtype = self.transformer.dtype
        positive = positive.to(self.device, dtype)
        if unconditional is not None:
            unconditional = unconditional.to(self.device, dtype)
        return WanCondition(positive, unconditional, guidance, guidance_2)

    def blank_condition(self, batch: int, guidance: float) -> WanCondition:
        """A condition of the right shapes, to plan with (`s2flow.costs`)."""
        width, dtype = self.transformer.config.text_dim, self.transformer.dtype
        text = torch.empty(batch, self.text_length, width, device=self.device, dtype=dtype)
        return WanCondition(text, None if guidance == 1.0 else text, guidance)

    @torch.no_grad()
    def velocity(self, z: Tensor, sigma: float, condition: WanCondition) -> Tensor:
        """See `base.Backbone`. Attention is observed in the conditional pass only."""
        v = self._forward(z, sigma, condition.positive, "cond")
        g = condition.guidance
        if condition.guidance_2 is not None and self._second(sigma):
            g = condition.guidance_2
        if condition.negative is None or g == 1.0:
            return v
        with self.router.observing(None):
            v_uncond = self._forward(z, sigma, condition.negative, "uncond")
        return v_uncond + g * (v - v_uncond)

    def _second(self, sigma: float) -> bool:
        """Whether the second expert has taken over at this noise level."""
        return self.boundary is not None and sigma < self.boundary

    def _forward(self, z: Tensor, sigma: float, text: Tensor, which: str) -> Tensor:
        model = self.transformer_2 if self._second(sigma) else self.transformer
        timestep = torch.full((len(z),), 1000 * sigma, device=z.device, dtype=torch.float32)
        with told(self.pipeline, model, which, sigma):
            return model(
                hidden_states=z.to(model.dtype),
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
        return (
            self.transformer.config.in_channels,
            t,
            height // self.scale_s,
            width // self.scale_s,
        )

    def token_grid(self, latent_shape: tuple[int, int, int, int]) -> Box:
        """See `base.Backbone`."""
        return tuple(n // p for n, p in zip(latent_shape[1:], self.patch, strict=True))

    def oov_rate(self, prompt: str) -> float:
        """0: Wan's vocabulary is open."""
        return 0.0

    def lost_words(self, prompt: str) -> tuple[int, str]:
        """See `base.Backbone`."""
        return beyond(self.pipeline.tokenizer, prompt_clean(prompt), self.text_length)
