"""Wan 2.1 and 2.2 text-to-video, and any pipeline with their classes, behind the backbone protocol.

Our own loop around diffusers' transformer, VAE and text encoder: the pipeline's callbacks give no
velocity, and its scheduler returns latents in the model's dtype. The model's timestep is 1000 sigma;
text is trimmed and zero-padded to a fixed length without a mask, so the padding length is part of the
model.

Wan 2.2 A14B is two transformers of one shape: at sigma >= boundary_ratio the first one runs, below it
the second, with a guidance of its own. LR and HR step on the same sigmas, so step n has the same expert
in both, and the plan's (step, layer) is that expert's layer. Around the switch, differences of the LR
flow reach over both experts. Wan 2.2 5B is told a timestep per token by the stock pipeline; in
text-to-video they are all equal, and one per clip says the same without 8 GB of modulations at 2K.
"""

import functools

import torch
from diffusers import WanPipeline
from diffusers.models.transformers import transformer_wan
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor, nn

from s2flow.backbones import checkpoint
from s2flow.backbones.base import Origin, beyond
from s2flow.backbones.pipeline import Condition, PipelineBackbone

PARTS = {  # of the pipeline's folder, with their classes
    "transformer": "WanTransformer3DModel",
    "transformer_2": "WanTransformer3DModel",  # of Wan 2.2 A14B only
    "vae": "AutoencoderKLWan",
    "text_encoder": "UMT5EncoderModel",
    "tokenizer": None,
}
identity = functools.partial(checkpoint.identity, parts=PARTS, pipeline=WanPipeline)
state = functools.partial(checkpoint.state, parts=PARTS, pipeline=WanPipeline)


def from_origin(origin: Origin, device: str) -> "WanBackbone":
    """See `base`."""
    pipeline = checkpoint.open_pipeline(origin, device, PARTS, WanPipeline)
    return WanBackbone(origin.name, pipeline)


class WanBackbone(PipelineBackbone):
    """A loaded `WanPipeline`; its text is states (B, L, D)."""

    def __init__(self, name: str, pipeline: WanPipeline, text_length: int = 512) -> None:
        config, vae = pipeline.transformer.config, pipeline.vae and pipeline.vae.config
        strides = (4, 8) if vae is None else (vae.scale_factor_temporal, vae.scale_factor_spatial)
        patch, channels = tuple(config.patch_size), config.in_channels
        super().__init__(name, pipeline, transformer_wan, patch, channels, strides)
        self.text_length = text_length
        self.boundary = getattr(pipeline, "config", {}).get("boundary_ratio")
        self.max_side = self.multiple * config.rope_max_seq_len
        if vae is not None:
            self._mean, self._std = (
                torch.tensor(x).view(1, -1, 1, 1, 1) for x in (vae.latents_mean, vae.latents_std)
            )

    def _layers(self, transformer: nn.Module) -> list[nn.Module]:
        return [block.attn1 for block in transformer.blocks]

    @torch.no_grad()
    def encode_prompt(
        self, prompts: list[str], negative: str, guidance: float, guidance_2: float | None = None
    ) -> Condition:
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
        like = {"device": self.device, "dtype": self.transformer.dtype}
        texts = [None if x is None else x.to(**like) for x in (positive, unconditional)]
        return Condition(*texts, guidance, guidance_2)

    def lost_words(self, prompt: str) -> tuple[int, str]:
        """See `base.Backbone`."""
        return beyond(self.pipeline.tokenizer, prompt_clean(prompt), self.text_length)

    def blank_condition(self, batch: int, guidance: float) -> Condition:
        """A condition of the right shapes, to plan with (`s2flow.costs`)."""
        width, dtype = self.transformer.config.text_dim, self.transformer.dtype
        text = torch.empty(batch, self.text_length, width, device=self.device, dtype=dtype)
        return Condition(text, None if guidance == 1.0 else text, guidance)

    def _forward(self, z: Tensor, sigma: float, text: Tensor) -> Tensor:
        model = self.transformer_2 if self._second(sigma) else self.transformer
        return model(
            hidden_states=z.to(model.dtype),
            timestep=torch.full((len(z),), 1000 * sigma, device=z.device, dtype=torch.float32),
            encoder_hidden_states=text,
            return_dict=False,
        )[0].float()

    def _normalised(self, raw: Tensor) -> Tensor:
        return (raw - self._mean.to(raw)) / self._std.to(raw)

    def _raw(self, z: Tensor) -> Tensor:
        return z * self._std.to(z) + self._mean.to(z)
