"""HunyuanVideo text-to-video (13B, and any pipeline with its classes) behind the backbone protocol.

Tokens are joint, [video, text]: 20 dual-stream blocks, then 40 single-stream ones, all with one
attention over both. Windows concern video keys and queries only (`s2flow.attention`). The text is
the LLaMA's third last hidden state after the template's 95 tokens, and CLIP's pooled vector. It is
cut to the batch's longest prompt, where the stock pipeline masks 256 tokens: equal to rounding, and
with no padding left the mask goes too. Guidance is embedded: the model is told 1000 g beside the
timestep 1000 sigma, in one pass, and takes no negative prompt. The flow lives on the latent times the
VAE's scaling factor.
"""

import math
from dataclasses import dataclass

import torch
from diffusers import HunyuanVideoPipeline
from diffusers.models.transformers import transformer_hunyuan_video
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from torch import Tensor

from s2flow.backbones import checkpoint
from s2flow.backbones.base import Origin, beyond
from s2flow.backbones.caches import told
from s2flow.backbones.inspect import State
from s2flow.backbones.ordering import TokenOrder
from s2flow.backbones.routing import AttentionRouter
from s2flow.errors import UserError
from s2flow.grid import Box

PARTS = {  # of the pipeline's folder, with their classes
    "transformer": "HunyuanVideoTransformer3DModel",
    "vae": "AutoencoderKLHunyuanVideo",
    "text_encoder": "LlamaModel",
    "text_encoder_2": "CLIPTextModel",
    "tokenizer": None,
    "tokenizer_2": None,
}


def identity(origin: Origin) -> str:
    """See `base`."""
    return checkpoint.identity(origin, PARTS, HunyuanVideoPipeline)


def state(origin: Origin) -> State:
    """See `base`."""
    return checkpoint.state(origin, PARTS, HunyuanVideoPipeline)


def from_origin(origin: Origin, device: str) -> "HunyuanVideoBackbone":
    """See `base`."""
    pipeline = checkpoint.open_pipeline(origin, device, PARTS, HunyuanVideoPipeline)
    return HunyuanVideoBackbone(origin.name, pipeline)


@dataclass(frozen=True)
class HunyuanVideoCondition:
    """Text states (B, L, D), which of them are real (B, L), pooled (B, P); real ones per clip."""

    text: Tensor
    mask: Tensor
    pooled: Tensor
    lengths: list[int]
    guidance: float


class HunyuanVideoBackbone:
    """A loaded `HunyuanVideoPipeline`; see `base.Backbone` for the contract."""

    max_side = math.inf  # positions are computed, not looked up

    def __init__(self, name: str, pipeline: HunyuanVideoPipeline) -> None:
        self.name, self.pipeline = name, pipeline
        self.transformer, self.vae = pipeline.transformer, pipeline.vae
        self.device = str(getattr(pipeline, "_execution_device", self.transformer.device))
        self.embeds: dict[str, Tensor] = {}
        self.ropes = [self.transformer.rope]
        config = self.transformer.config
        self.patch: Box = (config.patch_size_t, config.patch_size, config.patch_size)
        vae = self.vae
        self.frame_step: int = (
            vae.config.temporal_compression_ratio if vae else pipeline.vae_scale_factor_temporal
        )
        self.scale_s: int = (
            vae.config.spatial_compression_ratio if vae else pipeline.vae_scale_factor_spatial
        )
        self.multiple = self.scale_s * config.patch_size
        self.router = self._route()
        self.router.order = TokenOrder(self.transformer)

    def _route(self) -> AttentionRouter:
        model = self.transformer
        blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
        return AttentionRouter(transformer_hunyuan_video, [block.attn for block in blocks])

    def release(self) -> None:
        """See `base.Backbone`."""
        self.router.remove()

    @torch.no_grad()
    def encode_prompt(
        self, prompts: list[str], negative: str, guidance: float
    ) -> HunyuanVideoCondition:
        """See `base.Backbone`. Raises UserError for a negative prompt, which the model cannot take."""
        if negative:
            raise UserError(
                f"negative_prompt={negative} cannot be used: the guidance of {self.name} is embedded "
                "and takes none; leave negative_prompt out"
            )
        given = {k: x.to(self.device) for k, x in self.embeds.items()}
        words = None if given else prompts
        text, pooled, mask = self.pipeline.encode_prompt(words, device=self.device, **given)
        lengths = mask.sum(1).tolist()
        longest = max(lengths)
        text, mask = text[:, :longest].to(self.transformer.dtype), mask[:, :longest]
        for padded in (text, mask):  # a compiled graph must not be made for every prompt's length
            torch._dynamo.maybe_mark_dynamic(padded, 1)
        return HunyuanVideoCondition(
            text, mask, pooled.to(self.transformer.dtype), lengths, guidance
        )

    def blank_condition(self, batch: int, guidance: float) -> HunyuanVideoCondition:
        """A condition of the right shapes, to plan with (`s2flow.costs`); the longest text."""
        config, like = self.transformer.config, {"device": self.device}
        text = torch.empty(batch, 256, config.text_embed_dim, dtype=self.transformer.dtype, **like)
        pooled = text.new_empty(batch, config.pooled_projection_dim)
        mask = torch.ones(batch, 256, dtype=torch.long, **like)
        return HunyuanVideoCondition(text, mask, pooled, [256] * batch, guidance)

    @torch.no_grad()
    def velocity(self, z: Tensor, sigma: float, condition: HunyuanVideoCondition) -> Tensor:
        """See `base.Backbone`. One pass: guidance is one more number that the model is told."""
        dtype = self.transformer.dtype
        timestep = torch.full((len(z),), 1000 * sigma, device=z.device, dtype=torch.float32)
        guidance = torch.full_like(timestep, condition.guidance, dtype=dtype) * 1000.0
        with (
            self.router.text_of(condition.lengths, condition.text.shape[1]),
            told(self.pipeline, self.transformer, "cond", sigma),
        ):
            return self.transformer(
                hidden_states=z.to(dtype),
                timestep=timestep,
                encoder_hidden_states=condition.text,
                encoder_attention_mask=condition.mask,
                pooled_projections=condition.pooled,
                guidance=guidance if self.transformer.config.guidance_embeds else None,
                return_dict=False,
            )[0].float()

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """See `base.Backbone`."""
        x = (video.movedim(-1, 1).to(self.device, self.vae.dtype) * 2).sub_(1)
        return self.vae.encode(x).latent_dist.mode().float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """See `base.Backbone`."""
        z = latent.to(self.device, self.vae.dtype) / self.vae.config.scaling_factor
        x = self.vae.decode(z).sample.float()
        return x.div_(2).add_(0.5).clamp_(0, 1).movedim(1, -1)  # in place: 5 GiB at 2K

    def latent_shape(self, height: int, width: int, frames: int) -> tuple[int, int, int, int]:
        """See `base.Backbone`."""
        t = (frames - 1) // self.frame_step + 1
        channels = self.transformer.config.out_channels
        return channels, t, height // self.scale_s, width // self.scale_s

    def token_grid(self, latent_shape: tuple[int, int, int, int]) -> Box:
        """See `base.Backbone`."""
        return tuple(n // p for n, p in zip(latent_shape[1:], self.patch, strict=True))

    def oov_rate(self, prompt: str) -> float:
        """0: its vocabulary is open."""
        return 0.0

    def lost_words(self, prompt: str) -> tuple[int, str]:
        """See `base.Backbone`; of the first text encoder."""
        template = DEFAULT_PROMPT_TEMPLATE
        text = template["template"].format(prompt)
        return beyond(self.pipeline.tokenizer, text, 256 + template["crop_start"])
