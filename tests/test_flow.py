"""Conventions: one state read three ways, noise levels, noise that belongs to the clip alone."""

import math

import pytest
import torch
import torch.nn.functional as F

from s2flow import flow


def test_the_three_readings_of_a_state_agree():
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 2, 4, 3, 5, 6, generator=generator, dtype=torch.float64)
    v = eps - x0
    for sigma in (0.0, 0.1, 0.636, 1.0):
        z = flow.add_noise(x0, eps, sigma)
        assert torch.allclose(flow.x0_from_v(z, v, sigma), x0, atol=1e-14)
        if sigma:
            assert torch.allclose(flow.v_from_x0(z, x0, sigma), v, atol=1e-13)
    # v is the derivative of the state by its noise level, not the other way round
    step = flow.add_noise(x0, eps, 0.5 + 1e-6) - flow.add_noise(x0, eps, 0.5 - 1e-6)
    assert torch.allclose(step / 2e-6, v, atol=1e-8)


@pytest.mark.parametrize("shift", [1.0, 1.5, 3.0, 7.0])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_grid_runs_from_video_to_noise_by_steps_remaining(steps, shift):
    sigma = flow.sigma_grid(steps, shift)
    assert sigma.dtype == torch.float64 and len(sigma) == steps + 1
    assert sigma[0] == 0 and sigma[-1] == 1
    assert (sigma.diff() > 0).all()
    for n in range(steps + 1):
        s = n / steps
        assert float(sigma[n]) == pytest.approx(shift * s / (1 + (shift - 1) * s), abs=1e-14)


def test_grid_has_the_papers_noise_levels_at_its_hand_offs():
    sigma = flow.sigma_grid(50, 7.0)
    found = [round(float(sigma[t_i]), 3) for t_i in (40, 30, 20, 10)]
    assert found == [0.966, 0.913, 0.824, 0.636]


@pytest.mark.parametrize("r", [2, 3])
@pytest.mark.parametrize("sigma", [0.9, 0.636, 0.2])
def test_block_mean_of_a_noisy_hr_latent_has_the_snr_of_the_lr_level(r, sigma):
    """Simulated: signal that blocks keep (constant within them) plus white noise, averaged."""
    generator = torch.Generator().manual_seed(r)
    small = torch.randn(1, 1, 8, 120, 120, generator=generator)
    x0 = small.repeat_interleave(r, -1).repeat_interleave(r, -2)
    eps = torch.randn(x0.shape, generator=generator)
    z = F.avg_pool3d(flow.add_noise(x0, eps, sigma), (1, r, r))
    signal = float((z * small).mean() / (small * small).mean())
    noise = float((z - signal * small).std())
    inner = flow.equal_snr_sigma(sigma, r)
    assert noise / signal == pytest.approx(inner / (1 - inner), rel=0.01)
    # ... and it *is* the LR latent at that level, up to one factor
    assert signal / (1 - inner) == pytest.approx(noise / inner, rel=0.01)


def test_equal_snr_keeps_both_ends_and_scale_one():
    for r in (1, 2, 4):
        assert flow.equal_snr_sigma(1.0, r) == 1
        assert flow.equal_snr_sigma(0.0, r) == 0
    assert flow.equal_snr_sigma(0.3, 1) == pytest.approx(0.3)


def test_noise_depends_on_prompt_seed_and_purpose_alone():
    shape = (4, 3, 5, 6)
    first = flow.noise(shape, "a red ball", 1, "low")
    torch.manual_seed(99)  # no global state is read or moved
    expected = torch.randn(4)
    torch.manual_seed(99)
    assert torch.equal(flow.noise(shape, "a red ball", 1, "low"), first)
    assert torch.equal(torch.randn(4), expected)
    others = [("a red bal", 1, "low"), ("a red ball", 2, "low"), ("a red ball", 1, "high")]
    others += [("a red ball\0", 1, "low"), ("1\0a red ball", 1, "low")]
    for prompt, seed, purpose in others:
        other = flow.noise(shape, prompt, seed, purpose)
        assert abs(float((other * first).mean())) < 5 / math.sqrt(first.numel())
    # seed and prompt are told apart: (1, "2...") is not (12, "...")
    assert not torch.equal(flow.noise(shape, "2x", 1, "low"), flow.noise(shape, "x", 12, "low"))


def test_noise_is_white_with_unit_variance():
    eps = flow.noise((16, 8, 64, 64), "a prompt", 5, "high")
    assert eps.dtype == torch.float32
    bound = 5 / math.sqrt(eps.numel())
    assert abs(float(eps.mean())) < bound
    assert abs(float(eps.var()) - 1) < math.sqrt(2) * bound
    for dim in range(4):
        for lag in (1, 2):
            n = eps.shape[dim] - lag
            pairs = eps.narrow(dim, 0, n) * eps.narrow(dim, lag, n)
            assert abs(float(pairs.mean())) < 5 / math.sqrt(pairs.numel())


def test_trajectory_predicts_the_clean_latent():
    sigma = flow.sigma_grid(2, 1.0)
    z, v = torch.ones(1, 1, 1, 2, 2), torch.full((1, 1, 1, 2, 2), 3.0)
    path = flow.Trajectory(sigma, [z, z, z], [None, v, v])
    assert path.steps == 2
    assert torch.equal(path.x0(1), z - 0.5 * v)
