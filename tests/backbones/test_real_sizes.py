"""The real configurations, built on the meta device: no weights, but every count that matters."""

import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from s2flow.backbones.base import Origin
from s2flow.costs.blank import blank
from s2flow.grid import brick_grid, realised_density
from s2flow.policies import decide
from s2flow.policies.base import Case

CONF = Path(__file__).parents[2] / "conf"
SIZES = {  # parameters of the transformer, layers, heads; "13B" is what its authors call HunyuanVideo
    "wan_1_3b": (1_418_996_800, 30, 12),
    "wan_14b": (14_288_491_584, 40, 40),
    "hunyuan": (12_821_012_544, 60, 24),
    "wan_2_2_5b": (4_999_787_712, 30, 24),
    "wan_2_2_14b": (14_288_491_584, 40, 40),  # of either expert
    "hunyuan_1_5": (8_326_608_160, 54, 16),
}
# name -> latent's channels, tokens at the yaml's LR and HR
GRIDS = {
    "wan_2_2_5b": (48, (31, 22, 40), (31, 44, 80)),
    "wan_2_2_14b": (16, (21, 45, 80), (21, 90, 160)),
    "hunyuan_1_5": (32, (31, 45, 80), (31, 90, 160)),
}


@pytest.fixture(scope="module", params=list(SIZES))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def conf(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [f"backbone={name}"]).backbone


@pytest.fixture(scope="module")
def backbone(conf):
    return blank(conf.family, Origin.of(conf))


def test_parameters_layers_and_heads(name, backbone):
    config = backbone.transformer.config
    parameters = sum(p.numel() for p in backbone.transformer.parameters())
    assert (parameters, backbone.router.layers, config.num_attention_heads) == SIZES[name]
    assert config.attention_head_dim == 128


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
    _, layers, heads = SIZES[name]
    coverage = torch.rand(3, layers, 1, heads, *bricks, generator=torch.Generator().manual_seed(0))
    case = Case(sparsity, low, r.brick_low, high, r.brick_high, 2)
    plan = decide(r.windows, case, coverage)
    assert plan.boxes.shape == (3, layers, 1, heads, 3)
    assert plan.boxes.dtype == torch.int16
    for box in {tuple(b) for b in plan.boxes[1:].flatten(0, -2).tolist()}:
        assert abs(realised_density(high, r.brick_high, box) / sparsity - 1) <= 0.05 + 1e-6
