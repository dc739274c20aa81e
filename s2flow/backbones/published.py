"""What the published checkpoints' configs say, so that a plan needs neither download nor network.

{hub name: {part: config}}, as each part's config.json has it; what is left out is the default of
diffusers (transformers for text encoders). Under "model_index" stands what a plan needs of that file.
The counts of parameters are tested.

No config of Wan 2.2 and HunyuanVideo-1.5 could be fetched here. Transformers: Wan's own configurations
(wan_ti2v_5B.py, wan_t2v_A14B.py) and diffusers' conversion script (720p_t2v). Wan 2.2 5B's autoencoder:
a quoted vae/config.json, but for the statistics of its latents, which cost nothing. HunyuanVideo-1.5's:
the defaults of diffusers. Qwen2.5-VL-7B: a printed module tree. ByT5-small: its training file of t5x,
with a vocabulary, 1510, that makes up the 0.439 GB which others list for the file of its weights.
"""

UMT5_XXL = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24}
UMT5_XXL |= {"num_heads": 64, "feed_forward_proj": "gated-gelu"}
LLAMA_8B = {"vocab_size": 128320, "hidden_size": 4096, "intermediate_size": 14336}
LLAMA_8B |= {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
CLIP_L |= {"num_attention_heads": 12, "projection_dim": 768}
QWEN_7B = {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944}
QWEN_7B |= {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
ROTARY = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
QWEN_7B |= {"rope_parameters": ROTARY}
BYT5_SMALL = {"vocab_size": 1510, "d_model": 1472, "d_kv": 64, "d_ff": 3584, "num_layers": 12}
BYT5_SMALL |= {"num_heads": 6, "feed_forward_proj": "gated-gelu"}
WAN = {"cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "text_dim": 4096}
WAN_1_3B = WAN | {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
WAN_14B = WAN | {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}
WAN_2_2_5B = WAN | {"num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336}
WAN_2_2_5B |= {"in_channels": 48, "out_channels": 48}
WAN_2_2_VAE = {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True}
WAN_2_2_VAE |= {"in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16}
WAN_2_2_VAE |= {"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48}
TWO_EXPERTS = {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.875}
HUNYUAN = {"num_attention_heads": 24, "num_layers": 20, "num_single_layers": 40}
HUNYUAN_1_5 = {"num_attention_heads": 16, "num_layers": 54, "in_channels": 65, "out_channels": 32}
HUNYUAN_1_5 |= {"patch_size": 1, "target_size": 960, "task_type": "t2v"}


def _parts(transformer: dict, text_encoder: dict, **more: dict) -> dict[str, dict]:
    parts = {"model_index": {}, "transformer": transformer, "vae": {}}
    return parts | {"text_encoder": text_encoder} | more


PUBLISHED = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _parts(WAN_1_3B, UMT5_XXL),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": _parts(WAN_14B, UMT5_XXL),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": _parts(
        WAN_2_2_5B, UMT5_XXL, vae=WAN_2_2_VAE, model_index={"expand_timesteps": True}
    ),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": _parts(
        WAN_14B, UMT5_XXL, transformer_2=WAN_14B, model_index=TWO_EXPERTS
    ),
    "hunyuanvideo-community/HunyuanVideo": _parts(HUNYUAN, LLAMA_8B, text_encoder_2=CLIP_L),
    "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v": _parts(
        HUNYUAN_1_5, QWEN_7B, text_encoder_2=BYT5_SMALL
    ),
    "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v": _parts(
        HUNYUAN_1_5 | {"target_size": 640}, QWEN_7B, text_encoder_2=BYT5_SMALL
    ),
}
