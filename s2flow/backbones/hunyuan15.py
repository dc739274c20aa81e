"""HunyuanVideo-1.5 text-to-video (8.3B, and any pipeline with its classes), for the backbone protocol.

54 dual-stream blocks with one attention over [video, text], on a VAE of stride 4 x 16 x 16 and patches
of one latent. The text is Qwen2.5-VL's third last hidden state and, for what a prompt quotes, ByT5's;
the model puts each clip's real tokens first and the padding last. The stock pipeline pads to 1000 + 256
tokens, adds 729 empty places for an image, and builds an N x N mask in every layer (200 GB at 2K). Here
text is cut to the batch's longest, and a clip's padding is cut off before its attention instead of
masked: what the model computes is the same. The VAE's own attention goes frame by frame instead of
under a mask. The transformer is given [z, 0, 0]: no first frame, and a mask that says so.

Deviation: in half precision the stock pipeline rounds the timestep to the model's type (1000 sigma to
multiples of 4 in bfloat16). Here the model is told the very sigma that the step is taken from.
"""

import contextlib
import functools
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers import HunyuanVideo15Pipeline
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers import transformer_hunyuan_video15
from torch import Tensor, nn

from s2flow.backbones import checkpoint
from s2flow.backbones.base import Origin, beyond
from s2flow.backbones.hunyuan import HunyuanVideoBackbone
from s2flow.backbones.pipeline import Condition
from s2flow.backbones.routing import routed
from s2flow.backbones.swap import swapped
from s2flow.errors import UserError

PARTS = {  # of the pipeline's folder, with their classes; the guider is checked once it is read
    "transformer": "HunyuanVideo15Transformer3DModel",
    "vae": "AutoencoderKLHunyuanVideo15",
    "text_encoder": "Qwen2_5_VLTextModel",
    "text_encoder_2": "T5EncoderModel",
    "tokenizer": None,
    "tokenizer_2": None,
}
LONGEST = (1000, 256)  # text tokens of either encoder
GUIDER = {  # plain classifier-free guidance, whose scale is the recipe's
    "_class_name": "ClassifierFreeGuidance",
    "guidance_rescale": 0.0,
    "use_original_formulation": False,
    "start": 0.0,
    "stop": 1.0,
    "enabled": True,
}
identity = functools.partial(checkpoint.identity, parts=PARTS, pipeline=HunyuanVideo15Pipeline)
state = functools.partial(checkpoint.state, parts=PARTS, pipeline=HunyuanVideo15Pipeline)


def from_origin(origin: Origin, device: str) -> "HunyuanVideo15Backbone":
    """See `base`. Raises UserError also for a guider that does more than scale."""
    diffusers.utils.logging.set_verbosity_error()  # it would report that guiders are new
    pipeline = checkpoint.open_pipeline(origin, device, PARTS, HunyuanVideo15Pipeline)
    check_guider(pipeline, f"backbone.source={origin.source}")
    return HunyuanVideo15Backbone(origin.name, pipeline)


def check_guider(pipeline: HunyuanVideo15Pipeline, here: str) -> None:
    """Raises UserError for a guider that does more than scale."""
    found = dict(pipeline.guider.config) | {"_class_name": type(pipeline.guider).__name__}
    for key, plain in GUIDER.items():
        if found.get(key) != plain:
            raise UserError(
                f"{here}: its guider has {key}={found.get(key)}, and this backbone guides with "
                f"{key}={plain} only; take the plain ClassifierFreeGuidance"
            )


@dataclass(frozen=True)
class Text:
    """Qwen's and ByT5's states (B, L, D) and (B, L', D'), which are real; real ones per clip."""

    states: Tensor
    mask: Tensor
    glyphs: Tensor
    glyph_mask: Tensor
    lengths: list[int]


class HunyuanVideo15Backbone(HunyuanVideoBackbone):
    """A loaded `HunyuanVideo15Pipeline`; latents and tokens are laid out as HunyuanVideo's."""

    module, strides = transformer_hunyuan_video15, (4, 16)
    passes = ("pred_cond", "pred_uncond")

    def __init__(self, name: str, pipeline: HunyuanVideo15Pipeline) -> None:
        self._undo = contextlib.ExitStack()
        for layer in self._layers(pipeline.transformer):
            self._undo.callback(layer.set_processor, layer.processor)
            layer.set_processor(MasklessProcessor(layer.processor))
        vae = pipeline.vae
        for half in () if vae is None else (vae.encoder, vae.decoder):
            for block in half.mid_block.attentions:
                forward = functools.partial(attend_frame_by_frame, block)
                self._undo.enter_context(swapped(block, forward=forward))
        embedder = pipeline.transformer.time_embed.timestep_embedder
        hook = embedder.register_forward_pre_hook(
            lambda module, inputs: (inputs[0].to(pipeline.transformer.dtype),)
        )
        self._undo.callback(hook.remove)
        super().__init__(name, pipeline)

    def _layers(self, transformer: nn.Module) -> list[nn.Module]:
        return [block.attn for block in transformer.transformer_blocks]

    def release(self) -> None:
        """See `base.Backbone`."""
        super().release()
        self._undo.close()

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str], negative: str, guidance: float) -> Condition:
        """See `base.Backbone`."""
        unconditional = None
        if guidance != 1.0:
            unconditional = self._text([negative] * len(prompts), "negative_")
        return Condition(self._text(prompts, ""), unconditional, guidance)

    def _text(self, prompts: list[str], prefix: str) -> Text:
        names = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")
        given = {k: x for k in names if (x := self.embeds.get(prefix + k)) is not None}
        how = {"device": self.device, "dtype": self.transformer.dtype} | given
        states, mask, glyphs, glyph_mask = self.pipeline.encode_prompt(
            None if given else prompts, batch_size=len(prompts), **how
        )
        lengths = (mask.sum(1) + glyph_mask.sum(1)).int().tolist()
        return Text(*_cut(states, mask.bool()), *_cut(glyphs, glyph_mask.bool()), lengths)

    def lost_words(self, prompt: str) -> tuple[int, str]:
        """See `base.Backbone`; of the first text encoder, whose chat template is counted as tokens."""
        tokenizer = self.pipeline.tokenizer
        around = 0 if tokenizer is None else len(tokenizer(" ")["input_ids"]) - 1
        return beyond(tokenizer, prompt, LONGEST[0] - around)

    def blank_condition(self, batch: int, guidance: float) -> Condition:
        """A condition of the right shapes, to plan with (`s2flow.costs`); the longest text."""
        config, like, parts = self.transformer.config, {"device": self.device}, []
        widths = config.text_embed_dim, config.text_embed_2_dim
        for length, width in zip(LONGEST, widths, strict=True):
            parts.append(torch.empty(batch, length, width, dtype=self.transformer.dtype, **like))
            parts.append(torch.ones(batch, length, dtype=torch.bool, **like))
        text = Text(*parts, [sum(LONGEST)] * batch)
        return Condition(text, None if guidance == 1.0 else text, guidance)

    def _forward(self, z: Tensor, sigma: float, text: Text) -> Tensor:
        no_frame = z.new_zeros(len(z), z.shape[1] + 1, *z.shape[2:])
        image = z.new_zeros(len(z), 0, self.transformer.config.image_embed_dim)
        dtype = self.transformer.dtype
        with self.router.text_of(text.lengths, text.mask.shape[1] + text.glyph_mask.shape[1]):
            return self.transformer(
                hidden_states=torch.cat([z, no_frame], 1).to(dtype),
                timestep=torch.full((len(z),), 1000 * sigma, device=z.device, dtype=torch.float32),
                encoder_hidden_states=text.states,
                encoder_attention_mask=text.mask,
                encoder_hidden_states_2=text.glyphs,
                encoder_attention_mask_2=text.glyph_mask,
                image_embeds=image.to(dtype),
                return_dict=False,
            )[0].float()


def _cut(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Real tokens to the front, and the length cut to the longest clip's (which may be 0)."""
    order = mask.int().argsort(dim=1, descending=True, stable=True)[:, : int(mask.sum(1).max())]
    places = order[..., None].expand(-1, -1, states.shape[-1])
    return states.gather(1, places), mask.gather(1, order)


class MasklessProcessor:
    """Joint attention of one layer without the stock processor's N x N mask.

    Where clips of a batch have texts of different lengths, each one's padding, which stands last, is
    cut off; what the padding itself would attend is 0, as with the mask.
    """

    def __init__(self, stock: Any) -> None:
        while hasattr(stock, "stock"):  # of another backbone of this pipeline
            stock = stock.stock
        self.stock = stock
        self._attention_backend = stock._attention_backend  # what diffusers writes, and where
        self._parallel_config = stock._parallel_config

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Video (B, N, D) and text (B, L, D) after attention; attention_mask (B, L), None: all real."""

        def heads(x: Tensor, *layers: nn.Module) -> list[Tensor]:
            return [layer(x).unflatten(2, (attn.heads, -1)) for layer in layers]

        text, n = encoder_hidden_states, hidden_states.shape[1]
        q, k, v = heads(hidden_states, attn.to_q, attn.to_k, attn.to_v)
        q, k = attn.norm_q(q), attn.norm_k(k)
        if image_rotary_emb is not None:
            q, k = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (q, k))
        text_q, text_k, text_v = heads(text, attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text_q, text_k = attn.norm_added_q(text_q), attn.norm_added_k(text_k)
        joint = (torch.cat(pair, 1) for pair in ((q, text_q), (k, text_k), (v, text_v)))
        padding = None if attention_mask is None else (attention_mask == 0).sum(1).tolist()
        out = routed(self.dense)(*joint, padding).flatten(2, 3).to(q.dtype)
        return attn.to_out[1](attn.to_out[0](out[:, :n])), attn.to_add_out(out[:, n:])

    def dense(self, q: Tensor, k: Tensor, v: Tensor, padding: list[int] | None) -> Tensor:
        """diffusers' attention, (B, L, heads, d), but for each clip's last so many tokens."""
        how = {"backend": self._attention_backend, "parallel_config": self._parallel_config}
        attend = functools.partial(dispatch_attention_fn, **how)
        if padding is None:
            return attend(q, k, v)
        out = torch.zeros_like(q)
        for i, n in enumerate(q.shape[1] - n for n in padding):
            out[i : i + 1, :n] = attend(*(x[i : i + 1, :n] for x in (q, k, v)))
        return out


def attend_frame_by_frame(block: nn.Module, x: Tensor) -> Tensor:
    """The VAE's attention: every frame (of B, C, T, H, W) over itself and those before, unmasked.

    The stock one fills an N x N mask row by row, and fails for more than one clip.
    """
    normed = block.norm(x)
    layers = block.to_q, block.to_k, block.to_v
    q, k, v = (f(normed).flatten(3).permute(0, 2, 3, 1) for f in layers)  # (B, T, H W, C)
    frames = [
        F.scaled_dot_product_attention(
            q[:, t, None].contiguous(),
            *(past[:, : t + 1].flatten(1, 2)[:, None].contiguous() for past in (k, v)),
        )[:, 0]
        for t in range(q.shape[1])
    ]
    out = torch.stack(frames, 1).permute(0, 3, 1, 2).reshape(x.shape)
    return block.proj_out(out) + x
