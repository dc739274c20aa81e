"""Offload, fp8 and tiles: what only places the work changes no bit, what changes pixels says so."""

import copy

import pytest
import torch
from conftest import FACTS
from tiny_pipelines import relative
from torch import nn

from s2flow.backbones.base import Origin
from s2flow.backbones.placement import FP8, _Alone, place
from s2flow.backbones.tiles import tile_vae, tiled
from s2flow.errors import UserError

PROMPTS = ["a large red star spins"]
every = pytest.mark.parametrize("case", list(FACTS), indirect=True)


@pytest.fixture
def placed(case):
    """placed("group", fp8=True): this family's backbone, opened anew: hooks stay where they are put."""

    def open_and_place(*how, **more):
        backbone = FACTS[case.name][1].from_origin(Origin(case.name, str(case.folder)), "cpu")
        backbone.pipeline.tokenizer_max_length, backbone.pipeline.tokenizer_2_max_length = 12, 20
        place(backbone, "cpu", *how, **more)
        return backbone

    return open_and_place


def use(backbone):
    """Text, velocity, decoded and encoded again: each part twice, in turn."""
    out, generator = [], torch.Generator().manual_seed(0)
    shape = backbone.latent_shape(32, 64, 5)
    z = torch.randn(1, *shape, generator=generator)
    for sigma in (0.9, 0.5):
        condition = backbone.encode_prompt(PROMPTS, "", 4.0)
        out.append(backbone.velocity(z, sigma, condition))
        video = backbone.decode(z)
        out += [video, backbone.encode(video)]
    return out


@every
@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloading_changes_no_bit(case, placed, offload):
    backbone = placed(offload)
    assert backbone.device == "cpu"
    for ours, truth in zip(use(backbone), use(case.backbone), strict=True):
        assert torch.equal(ours, truth)


@every
def test_fp8_halves_or_quarters_the_linear_layers_and_moves_the_velocity(case, placed):
    """Blocks that travel as fp8 compute in the model's type: the same as fp8 alone."""
    backbone = placed(fp8=True)
    attention = [m for m in backbone.transformer.modules() if hasattr(m, "to_q")][-1]
    assert attention.to_q.weight.dtype == FP8 and backbone.transformer.dtype == torch.float32
    ours, (truth, *_) = use(backbone), use(case.backbone)
    assert 1e-4 < relative(ours[0], truth) < 0.5
    for travelling, alone in zip(use(placed("group", fp8=True)), ours, strict=True):
        assert torch.equal(travelling, alone)


class Part(nn.Module):
    """Knows only where it is."""

    def __init__(self):
        super().__init__()
        self.device = torch.device("cpu")

    def to(self, device):
        self.device = torch.device(device)


def test_one_part_at_a_time_is_on_the_device():
    parts = [Part() for _ in range(3)]
    for part in (parts[0], parts[1], parts[1], parts[2], parts[0]):
        _Alone("cuda:7", parts).pre_forward(part)
        assert [p for p in parts if p.device.type == "cuda"] == [part]


def test_the_hooks_see_every_use_of_every_part(case, placed, monkeypatch):
    """The autoencoder's encode and decode are no forward calls; they must bring it all the same."""
    seen = []
    monkeypatch.setattr(
        _Alone, "pre_forward", lambda self, m, *a, **k: (seen.append(type(m).__name__), (a, k))[1]
    )
    backbone = placed("model")
    use(backbone)
    short = [n for i, n in enumerate(seen) if i == 0 or seen[i - 1] != n]
    vae, transformer = type(backbone.vae).__name__, type(backbone.transformer).__name__
    texts = [t for t in short if t not in (vae, transformer)]
    assert short == [*texts[: len(texts) // 2], transformer, vae] * 2 and texts


# -- tiles ------------------------------------------------------------------------------------


@pytest.fixture
def latent(case):
    shape = case.backbone.latent_shape(64, 96, 5)
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def vae(case):
    yield case.backbone.vae
    tile_vae(case.backbone.vae, None)


@every
def test_tiles_are_diffusers_own_and_move_the_pixels_a_little(case, vae, latent):
    whole = case.backbone.decode(latent)
    z = case.backbone.encode(whole)
    tile_vae(vae, (96, 64))  # larger than the clip: no bit changes
    assert torch.equal(case.backbone.decode(latent), whole)
    assert torch.equal(case.backbone.encode(whole), z)
    tile_vae(vae, (32, 16))
    ours, back = case.backbone.decode(latent), case.backbone.encode(whole)
    assert ours.shape == whole.shape and back.shape == latent.shape
    assert 0 < float((ours - whole).abs().mean()) < 0.2  # untrained, so not small
    stock = copy.deepcopy(case.stock.vae)
    sides = ("min_height", "min_width")
    if case.name == "hunyuan_1_5":
        tiles = {f"tile_{of}_{s}": n for of, n in (("sample", 32), ("latent", 2)) for s in sides}
        stock.enable_tiling(**tiles, tile_overlap_factor=0.5)
    else:
        tiles = {"stride_height": 16, "stride_width": 16} | dict.fromkeys(sides, 32)
        stock.enable_tiling(**{f"tile_sample_{k}": n for k, n in tiles.items()})
    with torch.no_grad():
        x = whole.movedim(-1, 1) * 2 - 1
        raw, own = (v.encode(x).latent_dist.mode() for v in (stock, vae))
    assert torch.allclose(own, raw, atol=1e-6 if case.name != "hunyuan_1_5" else 1e-4)
    tile_vae(vae, None)
    assert torch.equal(case.backbone.decode(latent), whole)


@pytest.mark.parametrize("case", ["hunyuan_1_5"], indirect=True)
@pytest.mark.parametrize("tile", [(48, 32), (80, 48), (64, 64), (112, 80), (512, 448)])
def test_an_overlap_that_is_no_binary_fraction_loses_no_pixel(case, vae, tile):
    """1 - 32/48 of 48 is 15.99... in floats, and the clip would come out smaller."""
    tile_vae(vae, tile)
    side, stride = tile
    factor, latent = vae.tile_overlap_factor, vae.tile_latent_min_height
    assert int(side * (1 - factor)) == stride and int(side * factor) == side - stride
    assert 16 * int(latent * (1 - factor)) == stride and 16 * latent == side
    z = torch.zeros(1, *case.backbone.latent_shape(96, 160, 1))
    assert case.backbone.decode(z).shape == (1, 1, 96, 160, 3)
    assert case.backbone.encode(torch.zeros(1, 1, 96, 160, 3)).shape == z.shape


@every
def test_tiles_for_a_while_leave_the_autoencoder_as_it_was(case, vae):
    found = dict(vars(vae))
    with tiled(vae, (32, 16)):
        assert vae.use_tiling and vae.tile_sample_min_height == 32
    assert vars(vae) == found
    tile_vae(vae, (64, 32))
    with tiled(vae, None):  # its owner's tiles
        assert vae.use_tiling
    assert vae.use_tiling and vae.tile_sample_min_width == 64


def test_an_autoencoder_without_tiles_says_so(micro):
    tile_vae(micro.vae, None)
    with pytest.raises(UserError, match=r"PatchVAE has no tiles; leave vae_tile out"):
        tile_vae(micro.vae, (32, 16))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("vae_tile=[512,448]", "leave vae_tile out"),
        ("backbone=wan_1_3b vae_tile=[500,448]", r"multiples of 16 .* type vae_tile=\[512,448\]"),
        ("backbone=wan_1_3b vae_tile=[448,512]", "stride at most side"),
        ("backbone=wan_1_3b vae_tile=[512]", "is not"),
        ("offload=disk", "type one of offload=none|model|group"),
    ],
)
def test_what_cannot_be_placed_is_refused(word, said, recipe):
    with pytest.raises(UserError, match=said.replace("|", r"\|") if "offload" in word else said):
        recipe(*word.split())
