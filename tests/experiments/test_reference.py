"""The reference solution is what it says: of third order, nearer to the truth than what it judges."""

import math

import pytest
import torch
from closed_form import Z1, engine_around, reference, velocity
from reference import reference_flow

from s2flow.solver import Heun


@pytest.mark.parametrize("shift", [1.0, 7.0])
def test_it_converges_to_the_flow_with_order_three(recipe, shift):
    truth = reference(Z1, 400)
    run = engine_around(recipe(), 10, shift)
    errors = [float((reference_flow(run, Z1, 10, cut) - truth).norm()) for cut in (4, 8)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.3)
    heun = float((run.high_flow(Z1, 10, Heun()).z[0] - truth).norm())
    assert errors[0] < 0.01 * heun


def test_it_begins_at_the_hand_off_and_never_asks_at_zero(recipe):
    told = []

    def model(z, sigma):
        told.append(sigma)
        return velocity(z, sigma)

    run = engine_around(recipe(), 10, 3.0, model)
    reference_flow(run, Z1, 4, cut=2)
    assert told[0] == float(run.sigma[4]) and min(told) > 0
    assert len(told) == 3 * 2 * 4 and told == sorted(told, reverse=True)


def test_it_is_exact_where_velocities_are_quadratic_in_sigma(recipe):
    run = engine_around(
        recipe(), 6, 3.0, lambda z, s: (1 - 2 * s + 3 * s * s) * torch.ones_like(z)
    )
    end = reference_flow(run, Z1, 6, cut=1)
    assert torch.allclose(end, Z1 - (1 - 1 + 1), atol=1e-12)
