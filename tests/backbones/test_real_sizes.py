"""The real configurations, built on the meta device: no weights, but every count that matters."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLWan,
    HunyuanVideoTransformer3DModel,
    WanTransformer3DModel,
)
from hydra import compose, initialize_config_dir

from s2flow.backbones.hunyuan import HunyuanVideoBackbone
from s2flow.backbones.wan import WanBackbone
from s2flow.windows import brick_grid, make_plan, realised_density

CONF = Path(__file__).parents[2] / "conf"
# transformer/config.json of the published checkpoints; the autoencoders are diffusers' defaults
WAN = {"cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "text_dim": 4096}
CONFIGS = {
    "wan_1_3b": WAN | {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
    "wan_14b": WAN | {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824},
    "hunyuan": {"num_attention_heads": 24, "num_layers": 20, "num_single_layers": 40},
}
PARAMETERS = {  # transformer; "13B" is what its authors call HunyuanVideo
    "wan_1_3b": 1_418_996_800,
    "wan_14b": 14_288_491_584,
    "hunyuan": 12_821_012_544,
}
LAYERS = {"wan_1_3b": 30, "wan_14b": 40, "hunyuan": 60}
HEADS = {"wan_1_3b": 12, "wan_14b": 40, "hunyuan": 24}


@pytest.fixture(scope="module", params=list(CONFIGS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def backbone(name):
    ours, transformer, vae = {
        "wan": (WanBackbone, WanTransformer3DModel, AutoencoderKLWan),
        "hun": (HunyuanVideoBackbone, HunyuanVideoTransformer3DModel, AutoencoderKLHunyuanVideo),
    }[name[:3]]
    with torch.device("meta"):
        parts = {"transformer": transformer(**CONFIGS[name]), "vae": vae()}
    return ours(name, SimpleNamespace(**parts))


@pytest.fixture(scope="module")
def conf(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [f"backbone={name}"]).backbone


def test_parameters_layers_and_heads(name, backbone):
    transformer = backbone.transformer
    assert sum(p.numel() for p in transformer.parameters()) == PARAMETERS[name]
    assert backbone.router.layers == LAYERS[name]
    assert transformer.config.num_attention_heads == HEADS[name]
    assert transformer.config.attention_head_dim == 128


def test_token_grids_of_the_paper(backbone):
    for (height, width), tokens, count in (
        ((768, 1280), (30, 48, 80), 115_200),
        ((1536, 2560), (30, 96, 160), 460_800),
    ):
        latent = backbone.latent_shape(height, width, 117)
        assert latent == (16, 30, height // 8, width // 8)
        assert backbone.token_grid(latent) == tokens and math.prod(tokens) == count


def test_the_yaml_describes_this_model(name, backbone, conf):
    for knob in ("multiple", "frame_step"):
        assert conf[knob] == getattr(backbone, knob)
    assert conf.max_side <= backbone.max_side
    if name != "hunyuan":
        assert (conf.max_frames - 1) // 4 + 1 <= backbone.transformer.config.rope_max_seq_len
    assert conf.revision and conf.source.count("/") == 1


@pytest.mark.parametrize("sparsity", [0.75, 0.5, 0.25])
def test_a_plan_maps_one_to_one_from_lr_to_hr(name, backbone, conf, recipe, sparsity):
    """On the yaml's sizes bricks are full and both grids equal: no window is rounded on its way."""
    r = recipe(f"backbone={name}", f"sparsity={sparsity}")
    low, high = (
        backbone.token_grid(backbone.latent_shape(*size, r.frames)) for size in (r.low, r.high)
    )
    bricks = brick_grid(low, r.brick_low)
    assert bricks == brick_grid(high, r.brick_high)
    assert math.prod(bricks) * math.prod(r.brick_high) == math.prod(high)
    assert 96 <= math.prod(r.brick_high) <= 128
    if name == "hunyuan":
        assert bricks == (15, 12, 20) and r.t_i == 30
    layers, heads = LAYERS[name], HEADS[name]
    coverage = torch.rand(3, layers, 1, heads, *bricks, generator=torch.Generator().manual_seed(0))
    plan = make_plan(r.windows, sparsity, coverage, bricks, high, r.brick_high, 2)
    assert plan.boxes.shape == (3, layers, 1, heads, 3)
    assert plan.boxes.dtype == torch.int16
    for box in {tuple(b) for b in plan.boxes[1:].flatten(0, -2).tolist()}:
        assert abs(realised_density(high, r.brick_high, box) / sparsity - 1) <= 0.05 + 1e-6
