"""Hand-off (Eq. 5): noise fields that stay white, resizes that keep their meaning, three modes."""

import math

import pytest
import torch
import torch.nn.functional as F

from s2flow.errors import UserError
from s2flow.flow import Trajectory, sigma_grid
from s2flow.handoff import aligned_noise, hand_off, matched, resize_latent, resize_video


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_white(eps):
    n = eps.numel()
    assert abs(float(eps.mean())) < 5 / math.sqrt(n)
    assert abs(float(eps.var()) - 1) < 5 * math.sqrt(2 / n)
    for lag in [(0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (2, 2), (0, 3)]:
        H, W = eps.shape[-2:]
        a, b = eps[..., : H - lag[0], : W - lag[1]], eps[..., lag[0] :, lag[1] :]
        assert abs(float((a * b).mean())) < 5 / math.sqrt(a.numel()), lag
    for dim in (1, 2):
        a, b = eps.narrow(dim, 0, eps.shape[dim] - 1), eps.narrow(dim, 1, eps.shape[dim] - 1)
        assert abs(float((a * b).mean())) < 5 / math.sqrt(a.numel())
    # every place inside a block alike, not only on average
    r = 2
    cells = [eps[..., i::r, j::r] for i in range(r) for j in range(r)]
    for i, a in enumerate(cells):
        assert abs(float(a.var()) - 1) < 5 * math.sqrt(2 / a.numel())
        for b in cells[:i]:
            assert abs(float((a * b).mean())) < 5 / math.sqrt(a.numel())


@pytest.mark.parametrize("r", [2, 4])
def test_aligned_noise_is_white_and_its_block_mean_is_the_lr_noise(r):
    low, white = randn(1, 8, 8, 48, 48), randn(1, 8, 8, 48 * r, 48 * r, seed=1)
    eps = aligned_noise(white, low)
    assert_white(eps)
    assert torch.allclose(F.avg_pool3d(eps, (1, r, r)), low / r, atol=1e-6)


def test_whiteness_check_sees_what_the_deviation_avoids():
    """Interpolated noise: deviation 0.63 in the interior (docs/method.md), neighbours correlated."""
    up = resize_latent(randn(1, 8, 8, 48, 48), 96, 96, "bilinear")
    assert float(up[..., 2:-2, 2:-2].std()) == pytest.approx(0.625, abs=0.005)
    with pytest.raises(AssertionError):
        assert_white(up)
    with pytest.raises(AssertionError):  # replicated noise has unit variance but is not white
        assert_white(resize_latent(randn(1, 8, 8, 48, 48), 96, 96, "nearest"))


@pytest.mark.parametrize("size", [(6, 9), (8, 9), (4, 12), (7, 13)])
def test_aligned_noise_refuses_anything_but_one_integer_scale(size):
    with pytest.raises(UserError, match="noise=aligned") as error:
        aligned_noise(randn(1, 2, 1, *size), randn(1, 2, 1, 4, 6))
    assert "noise=fresh" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_latent_resize_is_spatial_per_frame_and_linear(mode):
    z = randn(2, 3, 4, 5, 6)
    up = resize_latent(z, 10, 12, mode)
    assert up.shape == (2, 3, 4, 10, 12)
    alone = resize_latent(z[1:, 2:, 3:], 10, 12, mode)  # no other clip, channel or frame matters
    assert torch.allclose(up[1:, 2:, 3:], alone, atol=1e-6)
    both = resize_latent(2 * z - randn(2, 3, 4, 5, 6, seed=1), 10, 12, mode)
    other = resize_latent(randn(2, 3, 4, 5, 6, seed=1), 10, 12, mode)
    assert torch.allclose(both, 2 * up - other, atol=1e-5)
    constant = resize_latent(torch.full((1, 1, 2, 4, 4), 0.7), 8, 8, mode)
    assert torch.allclose(constant, torch.tensor(0.7))


def test_latent_resize_modes_differ_as_named():
    ramp = torch.arange(6.0).expand(1, 1, 1, 4, 6).contiguous()
    near = resize_latent(ramp, 8, 12, "nearest")
    assert torch.equal(near, ramp.repeat_interleave(2, -1).repeat_interleave(2, -2))
    inner = slice(4, -4)
    exact = (torch.arange(12.0) - 0.5) / 2  # pixel centres, not corners
    for mode, tolerance in (("bilinear", 1e-6), ("bicubic", 0.05)):
        up = resize_latent(ramp, 8, 12, mode)[0, 0, 0, 4]
        assert torch.allclose(up[inner], exact[inner], atol=tolerance)
    both = [resize_latent(randn(1, 1, 1, 6, 6), 12, 12, m) for m in ("bicubic", "bilinear")]
    assert not torch.allclose(*both, atol=1e-2)


def test_video_resize_is_antialiased_and_stays_in_range():
    checker = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    video = checker.float()[None, None, :, :, None].expand(2, 3, 16, 16, 3)
    small = resize_video(video, 4, 4)
    assert small.shape == (2, 3, 4, 4, 3)
    assert float((small - 0.5).abs().max()) < 0.05  # aliasing would give 0 or 1
    large = resize_video(video, 32, 32)
    assert float(large.min()) >= 0 and float(large.max()) <= 1


def decode(z):
    """A 'VAE' that only moves channels: latent (B, C, T, H, W) -> video (B, T, H, W, C)."""
    return z.movedim(1, -1)


def encode(video):
    return video.movedim(-1, 1)


@pytest.fixture
def low():
    """LR flow whose every x0 lies in [0, 1], so that the fake VAE has nothing to clamp."""
    sigma = sigma_grid(4, 3.0)
    x0 = [torch.rand(2, 3, 2, 4, 6, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    eps = randn(2, 3, 2, 4, 6)
    z = [(1 - s) * x + s * eps for s, x in zip(sigma.float(), x0, strict=True)]
    v = [None] + [eps - x for x in x0[1:]]
    return Trajectory(sigma, z, v)


@pytest.mark.parametrize("n", [1, 3])
def test_x0_mode_goes_through_pixels_and_adds_noise_of_this_level(low, n):
    eps, sigma = randn(2, 3, 2, 8, 12, seed=9), float(low.sigma[n])
    z = hand_off(low, n, eps, "x0", decode, encode, (8, 12))
    x0 = encode(resize_video(decode(low.x0(n)), 8, 12))
    assert z.dtype == torch.float32
    assert torch.allclose(z, (1 - sigma) * x0 + sigma * eps, atol=1e-6)


def test_latent_mode_does_not_touch_the_vae(low):
    eps, sigma = randn(2, 3, 2, 8, 12, seed=9), float(low.sigma[2])
    z = hand_off(low, 2, eps, "latent", None, None, (8, 12))
    x0 = resize_latent(low.x0(2), 8, 12, "bicubic")
    assert torch.allclose(z, (1 - sigma) * x0 + sigma * eps, atol=1e-6)


def test_noisy_mode_is_equation_5_to_the_letter(low):
    z = hand_off(low, 2, randn(2, 3, 2, 8, 12), "noisy", decode, encode, (8, 12))
    assert torch.equal(z, encode(resize_video(decode(low.z[2]), 8, 12)))


def moments(x):
    return torch.std_mean(x, (2, 3, 4), correction=0)


def test_adain_gives_mean_and_deviation_per_clip_and_channel():
    x, like = 3 * randn(2, 3, 2, 8, 12) + 1, 0.5 * randn(2, 3, 2, 4, 6, seed=1) - 2
    out = matched(x, like)
    for ours, theirs in zip(moments(out), moments(like), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(matched(x, x), x, atol=1e-5)
    flat = matched(torch.full_like(x, 7.0), like)  # nothing to scale
    assert torch.allclose(flat, moments(like)[1][..., None, None, None].expand_as(flat))


@pytest.mark.parametrize("mode", ["x0", "latent"])
def test_the_hand_off_matches_the_lr_x0_only_if_asked(mode):
    z, v = randn(2, 3, 2, 4, 6), randn(2, 3, 2, 4, 6, seed=1)
    low = Trajectory(sigma_grid(2, 1.0), [z] * 3, [None, v, v])
    eps = torch.zeros(2, 3, 2, 8, 12)

    def decode(z):
        return (z.movedim(1, -1) / 10 + 0.5).clamp(0, 1)

    def encode(video):
        return (video.movedim(-1, 1) - 0.5) * 5  # loses half of the deviation

    def off(**how):
        return hand_off(low, 1, eps, mode, decode, encode, (8, 12), **how) / 0.5

    x0 = low.x0(1)
    for ours, theirs in zip(moments(off(adain=True)), moments(x0), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.equal(off(), off(adain=False))
    assert not torch.allclose(moments(off())[0], moments(x0)[0], rtol=0.05)
