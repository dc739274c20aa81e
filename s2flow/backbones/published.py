"""What the published checkpoints' configs say, so that a plan needs neither download nor network.

{hub name: {part: config}}, as each part's config.json has it; what is left out is the default of
diffusers (transformers for text encoders). The counts of parameters are tested.
"""

UMT5_XXL = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
LLAMA_8B = {
    "vocab_size": 128320,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
WAN = {"cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "text_dim": 4096}
WAN_1_3B = WAN | {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
WAN_14B = WAN | {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}
HUNYUAN = {"num_attention_heads": 24, "num_layers": 20, "num_single_layers": 40}

PUBLISHED = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": {
        "transformer": WAN_1_3B,
        "vae": {},
        "text_encoder": UMT5_XXL,
    },
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": {
        "transformer": WAN_14B,
        "vae": {},
        "text_encoder": UMT5_XXL,
    },
    "hunyuanvideo-community/HunyuanVideo": {
        "transformer": HUNYUAN,
        "vae": {},
        "text_encoder": LLAMA_8B,
        "text_encoder_2": CLIP_L,
    },
}
