"""Tiny complete pipelines of the real classes: one function per family, random weights, offline."""

import inspect

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLWan,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

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
SHIFT = {"wan": 3.0, "hunyuan": 7.0, "wan_2_2_5b": 5.0, "wan_2_2_14b": 12.0, "hunyuan_1_5": 9.0}


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


def scrambled(module, seed=1):
    """Every weight of a transformer drawn anew: at their own start, gates and outputs are zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.2 if p.ndim > 1 else 0.1))
            if "norm" in name and name.endswith("weight") and p.ndim == 1:
                p += 1
    return module


def umt5():
    return UMT5EncoderModel(
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
    ).eval()


def wan_transformer(channels=16, seed=1):
    return scrambled(
        WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=channels,
            out_channels=channels,
            text_dim=32,
            freq_dim=64,
            ffn_dim=32,
            num_layers=3,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        ),
        seed,
    ).eval()


def wan_vae():
    return AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    ).eval()


def build_wan(name="wan", **more):
    torch.manual_seed(0)
    parts = {"tokenizer": tokenizer(512), "text_encoder": umt5()}
    parts |= {"transformer": wan_transformer(), "vae": wan_vae()}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT[name])
    return WanPipeline(**parts | more, scheduler=scheduler)


def build_wan_2_2_5b():
    """Its autoencoder packs 2x2 pixels first and has residual paths: stride 4 x 16 x 16."""
    torch.manual_seed(2)
    vae = AutoencoderKLWan(
        base_dim=6,
        decoder_base_dim=6,
        z_dim=8,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1 * i for i in range(8)],
        latents_std=[0.5 + 0.1 * i for i in range(8)],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    ).eval()
    more = {"transformer": wan_transformer(8), "vae": vae, "expand_timesteps": True}
    return build_wan("wan_2_2_5b", **more)


def build_wan_2_2_14b():
    """Two experts."""
    return build_wan("wan_2_2_14b", transformer_2=wan_transformer(seed=5), boundary_ratio=0.875)


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


def qwen_tokenizer():
    """Words, and a chat template filled up to the 108 ids that the pipeline crops."""
    made = tokenizer(2000)
    made.chat_template = (
        "{% for m in messages %}{{ ' ' + m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    signature = inspect.signature(HunyuanVideo15Pipeline._get_mllm_prompt_embeds).parameters
    said = {"system": signature["system_message"].default, "user": ""}
    chat = [{"role": role, "content": content} for role, content in said.items()]
    before = made.apply_chat_template(chat, tokenize=False)
    filler = signature["crop_start"].default
    filler -= len(made(before, add_special_tokens=False).input_ids)
    assert filler >= 0, f"{-filler} words too many stand before the prompt"
    made.chat_template = "<s> " * filler + made.chat_template
    return made


def build_hunyuan_1_5():
    torch.manual_seed(0)
    text = Qwen2_5_VLTextConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=16,
        intermediate_size=37,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 1, 1],
        },
        pad_token_id=0,
        bos_token_id=3,
        eos_token_id=1,
    )
    transformer = scrambled(
        HunyuanVideo15Transformer3DModel(
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=3,
            num_refiner_layers=1,
            text_embed_dim=16,
            text_embed_2_dim=24,
            image_embed_dim=12,
            rope_axes_dim=(4, 6, 6),
            task_type="t2v",
        )
    ).eval()
    # at guidance 6, latents would else grow to 11 and rounding with them
    transformer.proj_out.weight.data *= 0.3
    return HunyuanVideo15Pipeline(
        tokenizer=qwen_tokenizer(),
        text_encoder=Qwen2_5_VLTextModel(text).eval(),
        tokenizer_2=ByT5Tokenizer(),
        text_encoder_2=T5EncoderModel(
            T5Config(
                vocab_size=384,
                d_model=24,
                d_kv=8,
                d_ff=37,
                num_layers=2,
                num_heads=2,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
            )
        ).eval(),
        transformer=transformer,
        vae=AutoencoderKLHunyuanVideo15(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8, 8),
            layers_per_block=1,
        ).eval(),
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT["hunyuan_1_5"]),
    )


BUILD = {
    "wan": build_wan,
    "hunyuan": build_hunyuan,
    "wan_2_2_5b": build_wan_2_2_5b,
    "wan_2_2_14b": build_wan_2_2_14b,
    "hunyuan_1_5": build_hunyuan_1_5,
}
