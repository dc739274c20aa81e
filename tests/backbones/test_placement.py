"""Offload, fp8 and tiles: what only places the work changes no bit, what changes pixels says so."""

import copy

import pytest
import torch
from torch import nn

from s2flow.backbones import hunyuan, wan
from s2flow.backbones.base import Origin
from s2flow.backbones.placement import FP8, _Alone, place, tile_vae
from s2flow.errors import UserError

PROMPTS = ["a large red star spins"]
FAMILIES = {"wan": wan, "hunyuan": hunyuan}


@pytest.fixture
def fresh(case):
    """This family's backbone, opened anew: hooks stay where they are put."""
    return FAMILIES[case.name].from_origin(Origin(case.name, str(case.folder)), "cpu")


def use(backbone):
    """Text, velocity, decoded and encoded again: each part twice, in turn."""
    out, generator = [], torch.Generator().manual_seed(0)
    shape = backbone.latent_shape(32, 48, 5)
    z = torch.randn(1, *shape, generator=generator)
    for sigma in (0.9, 0.5):
        condition = backbone.encode_prompt(PROMPTS, "", 4.0)
        out.append(backbone.velocity(z, sigma, condition))
        video = backbone.decode(z)
        out += [video, backbone.encode(video)]
    return out


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloading_changes_no_bit(case, fresh, offload):
    place(fresh, "cpu", offload)
    assert fresh.device == "cpu"
    for ours, truth in zip(use(fresh), use(case.backbone), strict=True):
        assert torch.equal(ours, truth)


def test_fp8_halves_or_quarters_the_linear_layers_and_moves_the_velocity(case, fresh):
    place(fresh, "cpu", "none", fp8=True)
    stored = {p.dtype for p in fresh.transformer.parameters()}
    assert FP8 in stored and fresh.transformer.dtype == torch.float32
    attention = [m for m in fresh.transformer.modules() if hasattr(m, "to_q")][-1]
    assert attention.to_q.weight.dtype == FP8
    (ours, *_), (truth, *_) = use(fresh), use(case.backbone)
    off = float((ours - truth).abs().max() / truth.abs().max())
    assert 1e-4 < off < 0.5


def test_fp8_and_group_offload_go_together(case, fresh):
    """Blocks travel as fp8 and compute in the model's type: the same as fp8 alone."""
    place(fresh, "cpu", "group", fp8=True)
    alone = FAMILIES[case.name].from_origin(Origin(case.name, str(case.folder)), "cpu")
    place(alone, "cpu", "none", fp8=True)
    for ours, truth in zip(use(fresh), use(alone), strict=True):
        assert torch.equal(ours, truth)


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


def test_the_hooks_see_every_use_of_every_part(case, fresh, monkeypatch):
    """The autoencoder's encode and decode are no forward calls; they must bring it all the same."""
    seen = []
    monkeypatch.setattr(
        _Alone, "pre_forward", lambda self, m, *a, **k: (seen.append(type(m).__name__), (a, k))[1]
    )
    place(fresh, "cpu", "model")
    use(fresh)
    short = [n for i, n in enumerate(seen) if i == 0 or seen[i - 1] != n]
    vae, transformer = type(fresh.vae).__name__, type(fresh.transformer).__name__
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


def test_tiles_larger_than_the_clip_change_no_bit(case, vae, latent):
    whole = case.backbone.decode(latent)
    back = case.backbone.encode(whole)
    tile_vae(vae, (96, 64))
    assert torch.equal(case.backbone.decode(latent), whole)
    assert torch.equal(case.backbone.encode(whole), back)


def test_tiles_are_diffusers_own_and_move_the_pixels_a_little(case, vae, latent):
    whole = case.backbone.decode(latent)
    tile_vae(vae, (32, 16))
    ours, back = case.backbone.decode(latent), case.backbone.encode(whole)
    assert ours.shape == whole.shape and back.shape == latent.shape
    assert 0 < float((ours - whole).abs().mean()) < 0.2  # untrained, so not small
    stock = copy.deepcopy(case.stock.vae)
    stock.enable_tiling(
        tile_sample_min_height=32,
        tile_sample_min_width=32,
        tile_sample_stride_height=16,
        tile_sample_stride_width=16,
    )
    with torch.no_grad():
        x = whole.movedim(-1, 1) * 2 - 1
        raw = stock.encode(x).latent_dist.mode()
    own = vae.encode(x).latent_dist.mode()
    assert torch.allclose(own, raw, atol=1e-6)
    tile_vae(vae, None)
    assert torch.equal(case.backbone.decode(latent), whole)


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
