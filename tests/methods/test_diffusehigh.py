"""DiffuseHigh: no guided step is plain Euler; a guided one has the reference's LL band."""

import pytest
import torch

from s2flow.flow import x0_from_v
from s2flow.methods import diffusehigh
from s2flow.methods.filters import dwt

NONE = ("method=diffusehigh", "method.guided_steps=0")


def inside(band):
    """Coefficients that are not redundant, see `filters`: of a frame of 2 (n - 3) or more samples."""
    return band[..., 3:-3, 3:-3]


def test_without_guided_steps_it_is_its_start_and_euler_bitwise(bench, monkeypatch, plain_euler):
    z = bench.states(monkeypatch, *NONE)[0][0]
    assert torch.equal(bench.generate(*NONE).latent, plain_euler(NONE, z))
    # ... and guidance starts from there, and does something
    assert torch.equal(bench.states(monkeypatch, "method=diffusehigh")[0][0], z)
    guided = bench.generate("method=diffusehigh").latent
    assert not torch.allclose(guided, bench.generate(*NONE).latent, atol=1e-3)


def test_guided_x0_has_the_references_ll_band_and_its_own_details(bench):
    engine = bench.engine("method=diffusehigh")
    video = diffusehigh.sharpened(engine, engine.low_flow())
    reference = bench.backbone.encode(video)
    replaced = diffusehigh.latent_bands(reference)
    corrector = diffusehigh.structure(range(3, 1, -1), replaced)
    z = engine.restart(reference)
    sigma = engine.sigma_high.tolist()
    v = bench.backbone.velocity(z, sigma[3], engine.condition)
    guided = x0_from_v(z, corrector(3, sigma[3], z, v), sigma[3])
    own, (ll, details) = dwt(x0_from_v(z, v, sigma[3]))[1], dwt(guided)
    assert torch.allclose(inside(ll), inside(dwt(reference)[0]), atol=1e-4)
    for a, b in zip(details, own, strict=True):
        assert torch.allclose(inside(a), inside(b), atol=1e-4)
    assert torch.equal(corrector(1, sigma[1], z, v), v)  # after the guided steps
    # equal inputs: a no-op
    own_bands = diffusehigh.latent_bands(x0_from_v(z, v, sigma[3]))
    same = diffusehigh.structure(range(3, 0, -1), own_bands)
    assert torch.allclose(same(3, sigma[3], z, v), v, atol=1e-4)


@pytest.mark.parametrize(("guided", "found"), [(2, 2), (9, 3)])
def test_so_many_first_steps_are_guided(bench, monkeypatch, guided, found):
    seen, real = [], diffusehigh.replace_ll
    monkeypatch.setattr(diffusehigh, "replace_ll", lambda x, ll: seen.append(1) or real(x, ll))
    words = ("method=diffusehigh", f"method.guided_steps={guided}")
    bench.generate(*words)
    assert len(seen) == found


def test_in_pixels_the_decoded_x0_has_the_videos_ll_band(bench):
    engine = bench.engine("method=diffusehigh")
    if bench.backbone.name == "micro":
        pytest.skip("its autoencoder is not exact")
    video = diffusehigh.sharpened(engine, engine.low_flow()) * 0.5 + 0.25  # nothing is clamped
    x0 = bench.backbone.encode(video.flip(2))
    mixed = bench.backbone.decode(diffusehigh.pixel_bands(engine, video)(x0))
    ll, truth = (inside(dwt(v.movedim(-1, 1))[0]) for v in (mixed, video))
    assert torch.allclose(ll, truth, atol=1e-4)


def test_the_start_is_the_sharpened_lr_video(bench, monkeypatch):
    (z, sigma), *_ = bench.states(monkeypatch, "method=diffusehigh")
    engine = bench.engine("method=diffusehigh")
    low = engine.low_flow()
    up = diffusehigh.resize_video(bench.backbone.decode(low.flow.z[0]), *engine.recipe.high)
    video = diffusehigh.sharpened(engine, low)
    s = torch.tensor([engine.reports[0]["blur"]])
    frames = up.movedim(-1, 1)
    truth = (2 * frames - diffusehigh_blur(frames, s)).clamp(0, 1).movedim(1, -1)
    assert torch.allclose(video, truth, atol=1e-5)
    clean = (z - sigma * engine.noise(engine.high_shape, "high")) / (1 - sigma)
    assert torch.allclose(clean, bench.backbone.encode(video), atol=1e-3)


def diffusehigh_blur(frames, s):
    """3 x 3 Gaussian, by torch's own convolution."""
    taps = torch.exp(-0.5 * (torch.arange(-1, 2) / s) ** 2)
    kernel = (taps[:, None] * taps / taps.sum() ** 2)[None, None]
    flat = frames.flatten(0, 2)[:, None]
    padded = torch.nn.functional.pad(flat, (1, 1, 1, 1), mode="reflect")
    return torch.nn.functional.conv2d(padded, kernel).view(frames.shape)
