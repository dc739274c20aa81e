"""The networks of the embedded backbone: Wan's transformer and UMT5's encoder, at toy size.

Genuine classes of diffusers and transformers, so that what is trained here runs through the adapter
of the real Wan.
"""

from dataclasses import dataclass

from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from s2flow.embedded.text import TEXT_LENGTH, build_tokenizer


@dataclass(frozen=True)
class Size:
    """Everything that differs between `micro`, `small` and `tiny`."""

    height: int
    width: int
    world: str
    heads: int
    layers: int
    ffn: int
    text_dim: int
    lr: float
    batch: int  # whole clips in a batch at the LR size
    patch: int = 2  # latent cells of 4 pixels along a side of a token
    frames: int = 8
    head_dim: int = 32
    shift: float = 1.5


SIZES = {
    "micro": Size(32, 48, "micro", 4, 6, 384, 96, 2e-3, 32),
    "small": Size(48, 72, "small", 4, 8, 384, 96, 2e-3, 16),
    "tiny": Size(64, 96, "tiny", 6, 8, 768, 96, 1e-3, 256),
}


def build_flow(size: Size) -> nn.ModuleDict:
    """Transformer and text encoder, randomly initialised."""
    transformer = WanTransformer3DModel(
        patch_size=(1, size.patch, size.patch),
        num_attention_heads=size.heads,
        attention_head_dim=size.head_dim,
        in_channels=16,
        out_channels=16,
        text_dim=size.text_dim,
        freq_dim=64,
        ffn_dim=size.ffn,
        num_layers=size.layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )
    text = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(build_tokenizer()),
            d_model=size.text_dim,
            d_kv=24,
            d_ff=2 * size.text_dim,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )
    return nn.ModuleDict({"transformer": transformer, "text_encoder": text})


def embed(text_encoder: nn.Module, tokenizer, texts: list[str], device) -> Tensor:
    """Text states (B, TEXT_LENGTH, D), zero beyond each prompt's end, as Wan's pipeline pads them."""
    how = {"padding": "max_length", "max_length": TEXT_LENGTH, "truncation": True}
    tokens = tokenizer(texts, **how, return_tensors="pt").to(device)
    states = text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return states * tokens.attention_mask[..., None]
