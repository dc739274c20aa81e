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

from s2flow.flow import sigma_grid

WORDS = ["a", "large", "red", "blue", "green", "star", "ball", "cat"]
WORDS += ["spins", "on", "sand", "slowly"]
# of different lengths; what is quoted goes to HunyuanVideo-1.5's second text encoder
PROMPTS = ['a large red star spins on "sand" slowly', "a blue cat"]
SHIFT = {"wan": 3.0, "hunyuan": 7.0, "wan_2_2_5b": 5.0, "wan_2_2_14b": 12.0, "hunyuan_1_5": 9.0}

IDS = {"vocab_size": len(WORDS) + 4, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}
LAYERS = {"num_attention_heads": 4, "intermediate_size": 37}


def tokenizer(length, start=0):
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
    ends = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}
    how = {"model_max_length": length, "padding_side": "right"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **ends, **how)


def scrambled(module, seed=1):
    """Every weight of a transformer drawn anew: at their own start, gates and outputs are zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.2 if p.ndim > 1 else 0.1))
            if "norm" in name and name.endswith("weight") and p.ndim == 1:
                p += 1
    return module


def wan_transformer(channels=16, seed=1):
    config = {"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12}
    config |= {"in_channels": channels, "out_channels": channels, "text_dim": 32, "freq_dim": 64}
    config |= {"ffn_dim": 32, "num_layers": 3, "cross_attn_norm": True, "rope_max_seq_len": 32}
    return scrambled(WanTransformer3DModel(**config, qk_norm="rms_norm_across_heads"), seed)


def wan_vae(base_dim=3, z_dim=16, dim_mult=(1, 1, 1, 1), **more):
    config = {"base_dim": base_dim, "z_dim": z_dim, "dim_mult": list(dim_mult)}
    config |= {"num_res_blocks": 1, "temperal_downsample": [False, True, True]}
    return AutoencoderKLWan(**config, **more)


def build_wan(name="wan", **more):
    torch.manual_seed(0)
    config = {"d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
    text = UMT5EncoderModel(
        UMT5Config(**config, **IDS, dropout_rate=0.0, decoder_start_token_id=0)
    )
    parts = {"tokenizer": tokenizer(512), "text_encoder": text}
    parts |= {"transformer": wan_transformer(), "vae": wan_vae()}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT[name])
    return WanPipeline(**parts | more, scheduler=scheduler)


def build_wan_2_2_5b():
    """Its autoencoder packs 2x2 pixels first and has residual paths: stride 4 x 16 x 16."""
    torch.manual_seed(0)
    scale = {"latents_mean": [0.1 * i for i in range(8)]}
    scale |= {"latents_std": [0.5 + 0.1 * i for i in range(8)]}
    packed = {"in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16}
    packed |= {"is_residual": True, "decoder_base_dim": 6}
    vae = wan_vae(6, 8, (1, 2, 4, 4), **scale, **packed)
    more = {"transformer": wan_transformer(8), "vae": vae, "expand_timesteps": True}
    return build_wan("wan_2_2_5b", **more)


def build_wan_2_2_14b():
    """Two experts."""
    return build_wan("wan_2_2_14b", transformer_2=wan_transformer(seed=5), boundary_ratio=0.875)


def build_hunyuan():
    torch.manual_seed(0)
    template = DEFAULT_PROMPT_TEMPLATE["template"].partition("{}")[0]
    before = len(tokenizer(1000)(template, add_special_tokens=False).input_ids)
    start = DEFAULT_PROMPT_TEMPLATE["crop_start"] - before  # the pipeline crops so many ids
    llama = {"hidden_size": 16, "num_hidden_layers": 3, "max_position_embeddings": 512}
    clip = {"hidden_size": 8, "num_hidden_layers": 2, "max_position_embeddings": 77}
    transformer = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2}
    transformer |= {"attention_head_dim": 16, "num_layers": 2, "num_single_layers": 2}
    transformer |= {"num_refiner_layers": 1, "patch_size": 2, "patch_size_t": 1}
    transformer |= {"guidance_embeds": True, "text_embed_dim": 16, "pooled_projection_dim": 8}
    vae = {"latent_channels": 4, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1}
    return HunyuanVideoPipeline(
        tokenizer=tokenizer(1000, start),
        text_encoder=LlamaModel(LlamaConfig(**IDS, **LAYERS, **llama)),
        tokenizer_2=tokenizer(77),
        text_encoder_2=CLIPTextModel(CLIPTextConfig(**IDS, **LAYERS, **clip, projection_dim=32)),
        transformer=scrambled(
            HunyuanVideoTransformer3DModel(**transformer, rope_axes_dim=(4, 6, 6))
        ),
        vae=AutoencoderKLHunyuanVideo(**vae, norm_num_groups=4, scaling_factor=0.476986),
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
    made.chat_template = "<s> " * filler + made.chat_template
    return made


def build_hunyuan_1_5():
    torch.manual_seed(0)
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    qwen = {"hidden_size": 16, "num_hidden_layers": 4, "max_position_embeddings": 2048}
    qwen |= LAYERS | {"num_attention_heads": 2, "num_key_value_heads": 1}
    byt5 = {"vocab_size": 384, "d_model": 24, "d_kv": 8, "d_ff": 37, "num_layers": 2}
    byt5 |= {"num_heads": 2, "dropout_rate": 0.0, "feed_forward_proj": "gated-gelu"}
    config = {"in_channels": 9, "out_channels": 4, "num_attention_heads": 2, "num_layers": 3}
    config |= {"attention_head_dim": 16, "num_refiner_layers": 1, "image_embed_dim": 12}
    config |= {"text_embed_dim": 16, "text_embed_2_dim": 24, "rope_axes_dim": (4, 6, 6)}
    transformer = scrambled(HunyuanVideo15Transformer3DModel(**config, task_type="t2v"))
    # at guidance 6, latents would else grow to 11 and rounding with them
    transformer.proj_out.weight.data *= 0.3
    vae = {"latent_channels": 4, "block_out_channels": (8, 8, 8, 8, 8), "layers_per_block": 1}
    return HunyuanVideo15Pipeline(
        tokenizer=qwen_tokenizer(),
        text_encoder=Qwen2_5_VLTextModel(
            Qwen2_5_VLTextConfig(**IDS, **qwen, rope_parameters=rotary)
        ).eval(),
        tokenizer_2=ByT5Tokenizer(),
        text_encoder_2=T5EncoderModel(T5Config(**byt5)),
        transformer=transformer,
        vae=AutoencoderKLHunyuanVideo15(**vae),
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


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


class OurGrid(FlowMatchEulerDiscreteScheduler):
    """The stock Euler steps on our noise levels, to the last bit.

    WanPipeline shifts FlowMatchEuler's grid twice; HunyuanVideo's is ours but for one unit in the last
    place of float32, which the sinusoids of 1000 sigma turn into 3e-5 of this network's velocity.
    """

    @classmethod
    def of(cls, own, steps, shift):
        """In place of a pipeline's own scheduler."""
        made = cls.from_config(own.config)
        made.ours = sigma_grid(steps, shift).flip(0)
        return made

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, **_):
        super().set_timesteps(len(self.ours) - 1, device)
        self.sigmas = self.ours.float()
        self.timesteps = (1000 * self.ours[:-1]).float()
