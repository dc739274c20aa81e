"""`experiments/solver_error.py`: the closed-form pair of flows, and what can be borrowed from it."""

import sys
from pathlib import Path
from statistics import fmean

import pytest
import torch

from s2flow.errors import UserError
from s2flow.flow import equal_snr_sigma

sys.path.append(str(Path(__file__).parents[2] / "experiments"))
import gaussian_flow
import solver_error

from s2flow.solver import derivative_cosines


def test_velocities_of_the_mixture_follow_from_its_score():
    """v = (eps - z) / (1 - sigma) with eps = -sigma grad log p_sigma(z), densities written out."""
    mixture = gaussian_flow.images(2.0, side=6)
    for field in (mixture, mixture.block_means(2)):
        sigma, D = 0.6, field.means.shape[1]
        V = (1 - sigma) ** 2 * field.covariance + sigma**2 * torch.eye(D, dtype=torch.float64)
        z = torch.randn(3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        z = (z * sigma + (1 - sigma) * field.means[:3]).requires_grad_()
        each = [
            torch.distributions.MultivariateNormal((1 - sigma) * mu, V).log_prob(z)
            for mu in field.means
        ]
        (score,) = torch.autograd.grad(torch.logsumexp(torch.stack(each), 0).sum(), z)
        expected = (-sigma * score - z) / (1 - sigma)
        side = round(D**0.5)
        found = field.velocity(z.detach().view(3, 1, 1, side, side), sigma).flatten(1)
        assert torch.allclose(found, expected, atol=1e-9)


def test_lr_images_are_the_block_means_of_hr_images():
    fine = gaussian_flow.images(2.0, side=8)
    coarse = fine.block_means(2)
    draws = torch.randn(
        40_000, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    within = (draws * fine.spectrum.sqrt()) @ fine.basis.T + fine.means[0]
    means = torch.nn.functional.avg_pool2d(within.view(-1, 1, 8, 8), 2).flatten(1)
    assert torch.allclose(means.mean(0), coarse.means[0], atol=0.02)
    assert torch.allclose(torch.cov(means.T), coarse.covariance, atol=0.03)
    variance = fine.means.square().mean() + fine.covariance.trace() / 64
    assert float(variance) == pytest.approx(1, abs=0.35)  # eight prototypes


@pytest.fixture(scope="module")
def cosines(recipe):
    """Mean cosine of each borrowed v' with that of the HR flow, by (hand-off noise, LR time)."""

    def cosine(noise, lr_time):
        words = ("steps=10", "t_i=6", "handoff=latent", f"noise={noise}", f"lr_time={lr_time}")
        run = gaussian_flow.GaussianCascade(4.0, recipe(*words), 8)
        low = run.low_flow()
        flow = run.high_flow(run.hand_off(low), 6)
        by_step = derivative_cosines(flow, run.lri(low, 2), 6)["lri"]
        return fmean(c for clips in by_step.values() for c in clips)

    return {(n, t): cosine(n, t) for n in ("fresh", "aligned") for t in ("sigma", "snr")}


def test_the_lr_derivative_points_the_right_way_with_aligned_noise_only(cosines):
    print(cosines)
    assert cosines["aligned", "sigma"] > cosines["fresh", "sigma"] + 0.3
    assert cosines["aligned", "snr"] > cosines["aligned", "sigma"] > 0.5
    assert cosines["fresh", "snr"] < 0.4


def test_block_means_of_an_hr_state_are_an_lr_state_at_equal_snr():
    """Through the exact velocities: x0 of both flows, for an image that the LR grid can hold."""
    fine = gaussian_flow.images(12.0)  # hardly anything beyond the LR grid
    coarse, r, sigma = fine.block_means(2), 2, 0.5
    inner = equal_snr_sigma(sigma, r)
    eps = torch.randn(
        1, 1, 1, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    z = (1 - sigma) * fine.means[0].view(1, 1, 1, 24, 24) + sigma * eps
    pooled = torch.nn.functional.avg_pool3d(z, (1, r, r)) / (1 - sigma) * (1 - inner)
    x0 = torch.nn.functional.avg_pool3d(z - sigma * fine.velocity(z, sigma), (1, r, r))
    x0_low = pooled - inner * coarse.velocity(pooled, inner)
    assert float((x0 - x0_low).norm() / x0.norm()) < 0.01
    wrong = coarse.velocity(pooled, sigma)  # at equal sigma it is not
    assert float((x0 - (pooled - sigma * wrong)).norm() / x0.norm()) > 0.05


def test_hand_offs_of_all_grids_are_at_one_noise_level():
    assert solver_error.hand_off_steps(16, [10, 20, 40]) == [4, 8, 16]
    with pytest.raises(UserError, match="--steps 15,40.*type --steps 10,20,40"):
        solver_error.hand_off_steps(15, [15, 40])


def test_heun_is_out_of_competition():
    row = {"error": {"euler": 0.3, "ab2": 0.1, "heun": 0.01}}
    assert solver_error.winner(row) == "ab2"
