"""Global orders of the solvers on a flow with a closed form: what the paper claims, and what is left.

Errors against classical Runge-Kutta; the order is log2 of the error's fall when N doubles.
"""

import math

import pytest
import torch
from closed_form import MU, TAU2, V1, V2, WEIGHT, Z1, Exact, exact_path, reference, velocity

from s2flow.flow import Trajectory
from s2flow.solver import AB2, AB3, LRI, Heun
from s2flow.unipc import UniPC


def measured_order(engine, truth, shift, steps, make_solver):
    """log2 of the error's fall over the last doubling of N; make_solver(run, N)."""
    errors = []
    for N in steps:
        run = engine(N, shift)
        z0 = run.high_flow(Z1, N, make_solver(run, N)).z[0]
        errors.append(float((z0 - truth).square().mean().sqrt()))
    slopes = [math.log2(a / b) for a, b in zip(errors[:-1], errors[1:], strict=True)]
    print(f"shift {shift}: errors {[f'{e:.2e}' for e in errors]}, orders {slopes}")
    return slopes[-1]


def test_the_oracle_is_the_flow_of_the_mixture():
    """Velocities against E[eps - x0 | z] by importance sampling; derivatives by differences."""
    generator = torch.Generator().manual_seed(0)
    which = torch.multinomial(WEIGHT, 400_000, replacement=True, generator=generator)
    noise = torch.randn(400_000, 2, generator=generator, dtype=torch.float64)
    x0 = MU[which] + TAU2[which, None].sqrt() * noise
    z, sigma = torch.tensor([0.3, -0.2], dtype=torch.float64), 0.7
    eps = (z - (1 - sigma) * x0) / sigma
    w = (-(eps * eps).sum(-1) / 2).softmax(0)
    expected = (w[:, None] * (eps - x0)).sum(0)
    assert torch.allclose(velocity(z.view(1, 2, 1, 1, 1), sigma).flatten(), expected, atol=0.01)
    s, h = torch.tensor(0.4, dtype=torch.float64), 1e-4
    path = reference(Z1, grid=torch.tensor([0.4 - h, 0.4, 0.4 + h, 1.0], dtype=torch.float64))
    v = [velocity(x, float(s) + i * h) for i, x in zip((-1, 0, 1), path, strict=False)]
    assert torch.allclose((v[2] - v[0]) / (2 * h), V1(path[1], s), atol=1e-6)
    assert torch.allclose((v[2] - 2 * v[1] + v[0]) / h**2, V2(path[1], s), atol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0, 7.0])
@pytest.mark.parametrize("K", [1, 2, 3])
def test_exact_derivatives_give_global_order_K(engine, truth, K, shift):
    found = measured_order(engine, truth, shift, (40, 80), lambda run, N: Exact(K))
    assert found == pytest.approx(K, abs=0.2)


@pytest.mark.parametrize("shift", [1.0, 7.0])
@pytest.mark.parametrize("K", [1, 2, 3])
def test_derivatives_borrowed_from_an_euler_path_give_order_two_at_most(engine, truth, K, shift):
    """LRI with the identity for U: K = 1 is Euler, every K >= 2 is globally of order 2."""

    def borrowed(run, N):
        return LRI(run.high_flow(Z1, N), upsample=lambda d: d, order=K)

    found = measured_order(engine, truth, shift, (80, 160), borrowed)
    assert found == pytest.approx(min(K, 2), abs=0.25)


@pytest.mark.parametrize("K", [2, 3, 4])
def test_stencils_are_wide_enough_for_their_order(engine, truth, K):
    """True velocities on the borrowed side: order K at least, four nodes for K = 4."""

    def true_path(run, N):
        return LRI(Trajectory(run.sigma, *exact_path(run.sigma)), upsample=lambda d: d, order=K)

    assert measured_order(engine, truth, 1.0, (40, 80), true_path) > K - 0.1


@pytest.mark.parametrize("shift", [1.0, 7.0])
@pytest.mark.parametrize("kind", [AB2, Heun])
def test_history_and_second_evaluations_give_order_two(engine, truth, kind, shift):
    found = measured_order(engine, truth, shift, (80, 160), lambda run, N: kind())
    assert found == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize(("shift", "steps"), [(1.0, (80, 160)), (3.0, (160, 320))])
def test_unipc_gives_order_two(engine, truth, shift, steps):
    """Its last step is Euler, whatever the corrector reaches before."""
    found = measured_order(engine, truth, shift, steps, lambda run, N: UniPC())
    assert found == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("shift", [1.0, 7.0])
def test_ab3_gives_order_three_from_true_velocities_before_its_first_step(engine, truth, shift):
    errors = []
    for N in (80, 160):
        run, ab3 = engine(N, shift), AB3()
        zs, vs = exact_path(run.sigma)
        ab3.past, ab3.older = (N - 1, vs[N - 1]), (N, vs[N])
        errors.append(float((run.high_flow(zs[N - 2], N - 2, ab3).z[0] - truth).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.2)


def test_ab3_from_a_hand_off_keeps_the_error_of_its_euler_step(engine, truth):
    """On even grids that is order 2; at shift 7 the first step is short, and AB2 far behind."""
    assert measured_order(engine, truth, 1.0, (80, 160), lambda run, N: AB3()) < 2.2
    run = engine(80, 7.0)
    errors = [float((run.high_flow(Z1, 80, s).z[0] - truth).norm()) for s in (AB2(), AB3())]
    assert errors[1] < 0.5 * errors[0]
