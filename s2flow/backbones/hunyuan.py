"""HunyuanVideo text-to-video (13B, and any pipeline with its classes) behind the backbone protocol.

Tokens are joint, [video, text]: 20 dual-stream blocks, then 40 single-stream ones, all with one
attention over both. Windows concern video keys and queries only (`s2flow.attention`). The text is
the LLaMA's third last hidden state after the template's 95 tokens, and CLIP's pooled vector. It is
cut to the batch's longest prompt, where the stock pipeline masks 256 tokens: equal to rounding, and
with no padding left the mask goes too. Guidance is embedded: the model is told 1000 g beside the
timestep 1000 sigma, in one pass, and takes no negative prompt. The flow lives on the latent times the
VAE's scaling factor.
"""

import functools
from dataclasses import dataclass

import torch
from diffusers import HunyuanVideoPipeline
from diffusers.models.transformers import transformer_hunyuan_video
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from torch import Tensor, nn

from s2flow.backbones import checkpoint
from s2flow.backbones.base import Origin, beyond
from s2flow.backbones.pipeline import Condition, PipelineBackbone
from s2flow.errors import UserError

PARTS = {  # of the pipeline's folder, with their classes
    "transformer": "HunyuanVideoTransformer3DModel",
    "vae": "AutoencoderKLHunyuanVideo",
    "text_encoder": "LlamaModel",
    "text_encoder_2": "CLIPTextModel",
    "tokenizer": None,
    "tokenizer_2": None,
}
LONGEST = 256  # text tokens
identity = functools.partial(checkpoint.identity, parts=PARTS, pipeline=HunyuanVideoPipeline)
state = functools.partial(checkpoint.state, parts=PARTS, pipeline=HunyuanVideoPipeline)


def from_origin(origin: Origin, device: str) -> "HunyuanVideoBackbone":
    """See `base`."""
    pipeline = checkpoint.open_pipeline(origin, device, PARTS, HunyuanVideoPipeline)
    return HunyuanVideoBackbone(origin.name, pipeline)


@dataclass(frozen=True)
class Text:
    """States (B, L, D), which are real (B, L), pooled (B, P), the guidance; real ones per clip."""

    states: Tensor
    mask: Tensor
    pooled: Tensor
    guidance: float
    lengths: list[int]


class HunyuanVideoBackbone(PipelineBackbone):
    """A loaded `HunyuanVideoPipeline`."""

    module, strides = transformer_hunyuan_video, (4, 8)  # strides: of a pipeline without a VAE

    def __init__(self, name: str, pipeline: HunyuanVideoPipeline) -> None:
        config, vae = pipeline.transformer.config, pipeline.vae and pipeline.vae.config
        patch, strides = (config.patch_size_t, config.patch_size, config.patch_size), self.strides
        if vae is not None:
            strides = vae.temporal_compression_ratio, vae.spatial_compression_ratio
        super().__init__(name, pipeline, self.module, patch, config.out_channels, strides)

    def _layers(self, transformer: nn.Module) -> list[nn.Module]:
        blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        return [block.attn for block in blocks]

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str], negative: str, guidance: float) -> Condition:
        """See `base.Backbone`. Raises UserError for a negative prompt, which the model cannot take."""
        if negative:
            raise UserError(
                f"negative_prompt={negative} cannot be used: the guidance of {self.name} is embedded "
                "and takes none; leave negative_prompt out"
            )
        given = {k: x.to(self.device) for k, x in self.embeds.items()}
        states, pooled, mask = self.pipeline.encode_prompt(
            None if given else prompts, device=self.device, **given
        )
        lengths = mask.sum(1).tolist()
        dtype, longest = self.transformer.dtype, max(lengths)
        states, mask = states[:, :longest].to(dtype), mask[:, :longest]
        for padded in (states, mask):  # or a graph would be compiled for every prompt's length
            torch._dynamo.maybe_mark_dynamic(padded, 1)
        text = Text(states, mask, pooled.to(dtype), guidance, lengths)
        return Condition(text, None, guidance)

    def lost_words(self, prompt: str) -> tuple[int, str]:
        """See `base.Backbone`; of the first text encoder."""
        template = DEFAULT_PROMPT_TEMPLATE
        text = template["template"].format(prompt)
        return beyond(self.pipeline.tokenizer, text, LONGEST + template["crop_start"])

    def blank_condition(self, batch: int, guidance: float) -> Condition:
        """A condition of the right shapes, to plan with (`s2flow.costs`); the longest text."""
        config, like = self.transformer.config, {"device": self.device}
        width, dtype = config.text_embed_dim, self.transformer.dtype
        states = torch.empty(batch, LONGEST, width, dtype=dtype, **like)
        pooled = states.new_empty(batch, config.pooled_projection_dim)
        mask = torch.ones(batch, LONGEST, dtype=torch.long, **like)
        text = Text(states, mask, pooled, guidance, [LONGEST] * batch)
        return Condition(text, None, guidance)

    def _forward(self, z: Tensor, sigma: float, text: Text) -> Tensor:
        dtype = self.transformer.dtype
        timestep = torch.full((len(z),), 1000 * sigma, device=z.device, dtype=torch.float32)
        guidance = torch.full_like(timestep, text.guidance, dtype=dtype) * 1000.0
        with self.router.text_of(text.lengths, text.states.shape[1]):
            return self.transformer(
                hidden_states=z.to(dtype),
                timestep=timestep,
                encoder_hidden_states=text.states,
                encoder_attention_mask=text.mask,
                pooled_projections=text.pooled,
                guidance=guidance if self.transformer.config.guidance_embeds else None,
                return_dict=False,
            )[0].float()

    def _normalised(self, raw: Tensor) -> Tensor:
        return raw * self.vae.config.scaling_factor

    def _raw(self, z: Tensor) -> Tensor:
        return z.to(self.vae.dtype) / self.vae.config.scaling_factor
