"""Tiny complete pipelines, saved as the real checkpoints are: same classes and folders, offline."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from s2flow.backbones import hunyuan, wan
from s2flow.backbones.base import Origin

WORDS = [
    "a",
    "large",
    "red",
    "blue",
    "green",
    "star",
    "ball",
    "cat",
    "spins",
    "on",
    "sand",
    "slowly",
]
SHIFT = {"wan": 3.0, "hunyuan": 7.0}
PIPELINES = {"wan": WanPipeline, "hunyuan": HunyuanVideoPipeline}
FAMILIES = {"wan": wan, "hunyuan": hunyuan}


def tokenizer(length, start=0, **ends):
    """One id per word; `start` ids before and </s> after; padded on the right up to `length`."""
    words = ["<pad>", "</s>", "<unk>", "<s>", *WORDS]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("<|eot_id|>", "isolated")]
    )
    made.post_processor = processors.TemplateProcessing(
        single=" ".join(["<s>"] * start + ["$A", "</s>"]),
        special_tokens=[("<s>", 3), ("</s>", 1)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<s>",
        model_max_length=length,
        padding_side="right",
    )


def llama_tokenizer():
    """The template's words before the prompt, filled up to the 95 ids that the pipeline crops."""
    before = DEFAULT_PROMPT_TEMPLATE["template"].partition("{}")[0]
    bare = len(tokenizer(1000)(before, add_special_tokens=False).input_ids)
    start = DEFAULT_PROMPT_TEMPLATE["crop_start"] - bare
    assert start >= 0, f"{bare} words stand before the prompt"
    return tokenizer(1000, start)


def scrambled(module):
    """Every weight of a transformer drawn anew: at their own start, gates and outputs are zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.2 if p.ndim > 1 else 0.1))
            if "norm" in name and name.endswith("weight") and p.ndim == 1:
                p += 1
    return module


def build_wan():
    torch.manual_seed(0)
    return WanPipeline(
        tokenizer=tokenizer(512),
        text_encoder=UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(WORDS) + 4,
                d_model=32,
                d_kv=8,
                d_ff=37,
                num_layers=2,
                num_heads=4,
                dropout_rate=0.0,
                pad_token_id=0,
                eos_token_id=1,
                decoder_start_token_id=0,
            )
        ).eval(),
        transformer=scrambled(
            WanTransformer3DModel(
                patch_size=(1, 2, 2),
                num_attention_heads=2,
                attention_head_dim=12,
                in_channels=16,
                out_channels=16,
                text_dim=32,
                freq_dim=64,
                ffn_dim=32,
                num_layers=3,
                cross_attn_norm=True,
                qk_norm="rms_norm_across_heads",
                rope_max_seq_len=32,
            )
        ).eval(),
        vae=AutoencoderKLWan(
            base_dim=3,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT["wan"]),
    )


def build_hunyuan():
    torch.manual_seed(0)
    vocab = len(WORDS) + 4
    return HunyuanVideoPipeline(
        tokenizer=llama_tokenizer(),
        text_encoder=LlamaModel(
            LlamaConfig(
                vocab_size=vocab,
                hidden_size=16,
                intermediate_size=37,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=512,
                pad_token_id=0,
                bos_token_id=3,
                eos_token_id=1,
            )
        ).eval(),
        tokenizer_2=tokenizer(77),
        text_encoder_2=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocab,
                hidden_size=8,
                intermediate_size=37,
                num_hidden_layers=2,
                num_attention_heads=4,
                projection_dim=32,
                max_position_embeddings=77,
                pad_token_id=0,
                bos_token_id=3,
                eos_token_id=1,
            )
        ).eval(),
        transformer=scrambled(
            HunyuanVideoTransformer3DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=16,
                num_layers=2,
                num_single_layers=2,
                num_refiner_layers=1,
                patch_size=2,
                patch_size_t=1,
                guidance_embeds=True,
                text_embed_dim=16,
                pooled_projection_dim=8,
                rope_axes_dim=(4, 6, 6),
            )
        ).eval(),
        vae=AutoencoderKLHunyuanVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.476986,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT["hunyuan"]),
    )


BUILD = {"wan": build_wan, "hunyuan": build_hunyuan}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folder of each family's tiny pipeline, as `save_pretrained` writes it."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, build in BUILD.items():
        build().save_pretrained(root / name)
    return {name: root / name for name in BUILD}


@pytest.fixture(scope="session", params=list(BUILD))
def case(request, folders):
    """One family: `name`, `folder`, our `backbone` and diffusers' own `stock`, opened separately."""
    name = request.param
    stock = PIPELINES[name].from_pretrained(folders[name], dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    backbone = FAMILIES[name].from_origin(Origin(name, str(folders[name])), "cpu")
    return SimpleNamespace(name=name, folder=folders[name], backbone=backbone, stock=stock)
