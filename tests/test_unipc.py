"""UniPC: diffusers' scheduler on the same noise levels, restarted at a hand-off, and its formulas."""

import math

import pytest
import torch
from closed_form import Z1, start, velocity
from diffusers import UniPCMultistepScheduler

from s2flow.flow import sigma_grid
from s2flow.unipc import UniPC, corrector_weights, log_snr


def stock(z, sigma, field):
    """z_0 by diffusers; sigma (N+1,) by steps remaining, from the start of the flow."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 1.0}
    kind = {"solver_order": 2, "solver_type": "bh2", "lower_order_final": True}
    scheduler = UniPCMultistepScheduler(**flow, **kind)
    scheduler.set_timesteps(sigmas=sigma.flip(0)[:-1].numpy().copy())
    for t, s in zip(scheduler.timesteps, sigma.flip(0).tolist(), strict=False):
        z = scheduler.step(field(z, s), t, z, return_dict=False)[0]
    return z


@pytest.mark.parametrize("shift", [1.0, 3.0, 7.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 25])
def test_from_noise_it_is_the_scheduler_of_diffusers(engine, steps, shift):
    run, z = engine(steps, shift), start(3, 2, 2, 4, 4)
    ours = run.high_flow(z, steps, UniPC()).z[0]
    theirs = stock(z, run.sigma, velocity)
    assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())
    if steps > 2:  # and not a solver that would pass as well
        assert float((run.high_flow(z, steps).z[0] - theirs).abs().max()) > 1e-3


@pytest.mark.parametrize("t_i", [1, 2, 5])
def test_at_a_hand_off_it_starts_afresh(engine, t_i):
    """t_i steps from a state in the middle: the scheduler that is told these noise levels only."""
    run, z = engine(9, 3.0), start(2, 2, 2, 4, 4)
    ours = run.high_flow(z, t_i, UniPC()).z[0]
    theirs = stock(z, run.sigma[: t_i + 1], velocity)
    assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())
    if t_i == 1:
        assert torch.allclose(ours, run.high_flow(z, 1).z[0], atol=1e-12)  # Euler


def test_it_asks_the_model_once_a_step_and_never_at_zero(engine):
    told = []

    def model(z, sigma):
        told.append(sigma)
        return velocity(z, sigma)

    run = engine(6, 3.0, model)
    run.high_flow(Z1, 6, UniPC())
    assert told == run.sigma.flip(0).tolist()[:-1]


def test_a_flow_towards_one_point_is_exact_in_any_number_of_steps(engine):
    """x0 constant: every prediction and correction aims at the same point."""
    point = start(1, 2, 1, 1, 1, seed=3)
    for steps in (1, 3, 10):
        run = engine(steps, 5.0, lambda z, sigma: (z - point) / sigma)
        z0 = run.high_flow(Z1, steps, UniPC()).z[0]
        assert torch.allclose(z0, point.expand_as(z0), atol=1e-12)


@pytest.mark.parametrize(("h", "r"), [(0.3, -0.8), (1.5, -2.0), (0.01, -1.1)])
def test_corrector_weights_integrate_parabolas_in_log_snr(h, r):
    """sigma_t int e^l X(l) dl from lambda_s to lambda_t, for X = 1, l, l^2, by quadrature."""
    a, b = corrector_weights(h, r)
    l = torch.linspace(0, h, 20001, dtype=torch.float64)
    weight = torch.exp(l - h)  # what a clean latent at log-SNR l contributes at its end
    for degree in (1, 2):
        exact = torch.trapezoid(weight * l**degree, l) / -math.expm1(-h)
        aim = a / r * (r * h) ** degree + b * h**degree
        assert aim == pytest.approx(float(exact), rel=1e-5)


def test_log_snr_is_finite_at_pure_noise_and_monotone():
    found = [log_snr(s) for s in sigma_grid(10, 7.0).tolist()[1:]]
    assert all(math.isfinite(x) for x in found) and found == sorted(found, reverse=True)
