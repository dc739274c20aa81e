"""The real configurations, built on the meta device: no weights, but every count that matters."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLWan,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoTransformer3DModel,
    WanTransformer3DModel,
)
from hydra import compose, initialize_config_dir

from s2flow.backbones import published
from s2flow.backbones.hunyuan import HunyuanVideoBackbone
from s2flow.backbones.hunyuan15 import HunyuanVideo15Backbone
from s2flow.backbones.wan import WanBackbone
from s2flow.grid import brick_grid, realised_density
from s2flow.policies import decide
from s2flow.policies.base import Case

CONF = Path(__file__).parents[2] / "conf"
CONFIGS = {
    "wan_1_3b": published.WAN_1_3B,
    "wan_14b": published.WAN_14B,
    "hunyuan": published.HUNYUAN,
    "wan_2_2_5b": published.WAN_2_2_5B,
    "wan_2_2_14b": published.WAN_14B,
    "hunyuan_1_5": published.HUNYUAN_1_5,
}
PARAMETERS = {  # transformer; "13B" is what its authors call HunyuanVideo
    "wan_1_3b": 1_418_996_800,
    "wan_14b": 14_288_491_584,
    "hunyuan": 12_821_012_544,
    "wan_2_2_5b": 4_999_787_712,
    "wan_2_2_14b": 14_288_491_584,  # of either expert
    "hunyuan_1_5": 8_326_608_160,
}
LAYERS = {"wan_1_3b": 30, "wan_14b": 40, "hunyuan": 60}
LAYERS |= {"wan_2_2_5b": 30, "wan_2_2_14b": 40, "hunyuan_1_5": 54}
HEADS = {"wan_1_3b": 12, "wan_14b": 40, "hunyuan": 24}
HEADS |= {"wan_2_2_5b": 24, "wan_2_2_14b": 40, "hunyuan_1_5": 16}
# name -> latent's channels, tokens at the yaml's LR and HR
GRIDS = {
    "wan_2_2_5b": (48, (31, 22, 40), (31, 44, 80)),
    "wan_2_2_14b": (16, (21, 45, 80), (21, 90, 160)),
    "hunyuan_1_5": (32, (31, 45, 80), (31, 90, 160)),
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def backbone(name):
    ours, transformer, vae = {
        "wan": (WanBackbone, WanTransformer3DModel, AutoencoderKLWan),
        "hunyuan": (
            HunyuanVideoBackbone,
            HunyuanVideoTransformer3DModel,
            AutoencoderKLHunyuanVideo,
        ),
        "hunyuan_1_5": (
            HunyuanVideo15Backbone,
            HunyuanVideo15Transformer3DModel,
            AutoencoderKLHunyuanVideo15,
        ),
    }[name if name.startswith("hunyuan") else "wan"]
    with torch.device("meta"):
        parts = {"transformer": transformer(**CONFIGS[name])}
        parts["vae"] = vae(**published.WAN_2_2_VAE if name == "wan_2_2_5b" else {})
        if name == "wan_2_2_14b":
            parts["transformer_2"] = transformer(**CONFIGS[name])
            parts["config"] = {"boundary_ratio": 0.875}
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


@pytest.mark.parametrize("name", ["wan_1_3b", "wan_14b", "hunyuan"], indirect=True)
def test_token_grids_of_the_paper(backbone):
    for (height, width), tokens, count in (
        ((768, 1280), (30, 48, 80), 115_200),
        ((1536, 2560), (30, 96, 160), 460_800),
    ):
        latent = backbone.latent_shape(height, width, 117)
        assert latent == (16, 30, height // 8, width // 8)
        assert backbone.token_grid(latent) == tokens and math.prod(tokens) == count


@pytest.mark.parametrize("name", list(GRIDS), indirect=True)
def test_token_grids_of_the_later_models(name, backbone, conf):
    channels, low, high = GRIDS[name]
    for size, tokens in ((conf.low, low), (conf.high, high)):
        latent = backbone.latent_shape(*size, conf.frames)
        assert latent[0] == channels and backbone.token_grid(latent) == tokens
    inputs = backbone.transformer.config.in_channels
    assert inputs == (2 * channels + 1 if name == "hunyuan_1_5" else channels)


def test_the_yaml_describes_this_model(name, backbone, conf):
    for knob in ("multiple", "frame_step", "boundary"):
        assert conf[knob] == getattr(backbone, knob, None)
    assert conf.max_side <= backbone.max_side
    if not name.startswith("hunyuan"):
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
    assert (80 if name == "wan_2_2_5b" else 96) <= math.prod(r.brick_high) <= 128
    if name == "hunyuan":
        assert bricks == (15, 12, 20) and r.t_i == 30
    layers, heads = LAYERS[name], HEADS[name]
    coverage = torch.rand(3, layers, 1, heads, *bricks, generator=torch.Generator().manual_seed(0))
    case = Case(sparsity, low, r.brick_low, high, r.brick_high, 2)
    plan = decide(r.windows, case, coverage)
    assert plan.boxes.shape == (3, layers, 1, heads, 3)
    assert plan.boxes.dtype == torch.int16
    for box in {tuple(b) for b in plan.boxes[1:].flatten(0, -2).tolist()}:
        assert abs(realised_density(high, r.brick_high, box) / sparsity - 1) <= 0.05 + 1e-6
