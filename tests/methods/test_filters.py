"""Filters: exact reconstruction, stated gains, every frame and clip by itself."""

import math

import pytest
import torch

from s2flow.methods import filters
from s2flow.methods.filters import blur, butterworth, dwt, idwt, low_pass, replace_ll, sharpen


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wave(height, width, rho_h, rho_w):
    """A plane wave of this frequency, in units of Nyquist (half a cycle per pixel)."""
    y, x = torch.arange(height)[:, None], torch.arange(width)
    return torch.cos(math.pi * (rho_h * y + rho_w * x)).expand(1, 1, 1, -1, -1)


@pytest.mark.parametrize("size", [(40, 60), (41, 60), (40, 61), (8, 12), (5, 7)])
def test_constants_pass_and_shapes_are_kept(size):
    x = torch.full((2, 3, 4, *size), 0.7)
    assert low_pass(x).shape == x.shape
    assert torch.allclose(low_pass(x), x, atol=1e-6)
    assert float(butterworth(*size, 0.2)[0, 0]) == 1


@pytest.mark.parametrize(("rho_h", "rho_w"), [(0.2, 0), (0, 0.2), (0.12, 0.16)])
@pytest.mark.parametrize("size", [(100, 100), (100, 50), (50, 200)])
def test_the_gain_is_one_half_at_the_cutoff_in_every_direction_of_any_frame(rho_h, rho_w, size):
    x = wave(*size, rho_h, rho_w)
    assert torch.allclose(low_pass(x, 0.2), x / 2, atol=1e-5)


@pytest.mark.parametrize("rho", [0.04, 0.1, 0.4, 1.0])
def test_the_gain_is_that_of_the_formula(rho):
    x = wave(100, 50, rho, 0)
    gain = 1 / (1 + (rho / 0.2) ** 8)
    assert torch.allclose(low_pass(x), gain * x, atol=1e-5)
    assert torch.allclose(low_pass(x, 0.4, 2), x / (1 + (rho / 0.4) ** 4), atol=1e-5)


# -- wavelets ---------------------------------------------------------------------------------

SIZES = [(16, 24), (15, 24), (16, 23), (15, 23), (7, 9), (2, 3), (1, 1)]


@pytest.mark.parametrize("size", SIZES)
def test_wavelets_reconstruct_perfectly(size):
    x = randn(2, 3, 2, *size)
    ll, details = dwt(x)
    assert {b.shape[-2:] for b in (ll, *details)} == {tuple((n + 7) // 2 for n in size)}
    back = idwt(ll, details, size)
    assert back.shape == x.shape and back.dtype == x.dtype
    assert torch.allclose(back, x, atol=2e-6)
    assert torch.allclose(replace_ll(x, ll), x, atol=2e-6)


def inside(band, size):
    """The coefficients whose taps lie inside the frame: those of index 3 ... (n - 2) // 2."""
    h, w = (n // 2 for n in size)
    return band[..., 3:h, 3:w]


@pytest.mark.parametrize("size", [(32, 48), (31, 48), (32, 45)])
def test_a_replaced_ll_band_is_found_again_and_details_are_kept(size):
    x, y = randn(1, 2, 2, *size), randn(1, 2, 2, *size, seed=1)
    ll, other = dwt(y)
    found, details = dwt(replace_ll(x, ll))
    kept = dwt(x)[1]
    assert inside(ll, size).numel() > 0
    assert torch.allclose(inside(found, size), inside(ll, size), atol=1e-5)
    for a, b, c in zip(details, kept, other, strict=True):
        assert torch.allclose(inside(a, size), inside(b, size), atol=1e-5)
        assert not torch.allclose(inside(a, size), inside(c, size), atol=0.1)
    # at the border the bands are redundant, and only there
    assert not torch.allclose(found, ll, atol=1e-2)


def test_the_ll_band_is_the_smooth_one():
    ll, details = dwt(torch.full((1, 1, 1, 16, 24), 0.5))
    assert torch.allclose(ll, torch.tensor(1.0), atol=1e-5)  # gain 2 of a 2-D level
    assert all(float(d.abs().max()) < 1e-5 for d in details) and filters.WAVELET == "db4"


def test_blur_is_the_3x3_gaussian_of_each_clip():
    x = torch.zeros(2, 1, 1, 7, 9)
    x[..., 3, 4] = 1
    out = blur(x, torch.tensor([0.5, 2.0]))
    for clip, sigma in enumerate((0.5, 2.0)):
        taps = torch.tensor([math.exp(-0.5 * i**2 / sigma**2) for i in (-1, 0, 1)])
        taps = taps / taps.sum()
        assert torch.allclose(out[clip, 0, 0, 2:5, 3:6], taps[:, None] * taps, atol=1e-6)
        assert float(out[clip].sum()) == pytest.approx(1, abs=1e-6)


def test_sharpening_keeps_constants_doubles_what_blur_removes_and_can_be_nothing():
    flat = torch.full((2, 3, 2, 6, 8), 0.3)
    sigma = torch.tensor([0.1, 2.0])
    assert torch.allclose(sharpen(flat, sigma), flat, atol=1e-6)
    x = randn(2, 3, 2, 6, 8)
    out = sharpen(x, sigma)
    assert torch.allclose(out - x, x - blur(x, sigma), atol=1e-6)
    assert torch.allclose(out[0], x[0], atol=1e-6)  # a Gaussian of 0.1 pixels touches no neighbour
    assert not torch.allclose(out[1], x[1], atol=0.1)


@pytest.mark.parametrize(
    "of", [low_pass, lambda x: replace_ll(x, dwt(x)[0] * 0), lambda x: blur(x, torch.ones(len(x)))]
)
def test_every_frame_channel_and_clip_is_filtered_by_itself(of):
    x = randn(2, 3, 4, 16, 24)
    alone = of(x[1:, 2:, 3:])
    assert torch.allclose(of(x)[1:, 2:, 3:], alone, atol=1e-6)
