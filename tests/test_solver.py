"""LRI-HiSolver (Eqs. 10-12) on a flow with a closed form, through the engine that runs the model."""

import math

import pytest
import torch
from closed_form import V1, Z1, exact_path, start, velocity

from s2flow import solver
from s2flow.flow import Trajectory, equal_snr_sigma, sigma_grid
from s2flow.solver import AB2, AB3, LRI, Euler, Heun, LRICv, difference_weights, taylor_step
from s2flow.unipc import UniPC


@pytest.mark.parametrize("N", [20, 50])
def test_weights_of_the_actual_nodes_beat_equation_11_on_an_uneven_grid(N):
    """The derivative itself, on the exact flow: what the even-grid formula loses at shift 7."""
    sigma = sigma_grid(N, 7.0)
    low = Trajectory(sigma, *exact_path(sigma))
    errors = {"grid": 0.0, "central": 0.0}
    for n in range(2, N):
        exact = V1(low.z[n], sigma[n])
        for stencil in errors:
            (d,) = solver.lr_derivatives(low, n, 2, stencil)
            errors[stencil] += float((d - exact).norm() / exact.norm()) / (N - 2)
    print(errors)
    assert errors["grid"] < 0.5 * errors["central"]
    assert errors["central"] > 0.02  # the 5-24 % by which neighbouring steps differ


def test_order_one_is_euler_exactly(engine):
    z, v = start(2, 3, 2, 4, 4, dtype=torch.float32), start(2, 3, 2, 4, 4, dtype=torch.float32)
    assert torch.equal(taylor_step(z, -0.02, [v]), z + -0.02 * v)
    run = engine(6, 3.0)
    low = run.high_flow(Z1, 6)
    first = run.high_flow(Z1, 6, LRI(low, lambda d: d, order=1))
    assert all(torch.equal(a, b) for a, b in zip(first.z, low.z, strict=True))


def test_taylor_step_is_exact_on_polynomials():
    """z(sigma) = sum a_j sigma^j of degree 4, with its four derivatives, lands on z(sigma')."""
    a, s, d = [0.3, -1.0, 2.0, 0.7, -0.4], 0.8, -0.17
    one = torch.ones(1, dtype=torch.float64)
    derivatives = [
        one * sum(math.perm(j, k) * a[j] * s ** (j - k) for j in range(k, 5)) for k in range(1, 5)
    ]
    z, end = (one * sum(a[j] * x**j for j in range(5)) for x in (s, s + d))
    assert torch.allclose(taylor_step(z, d, derivatives), end, atol=1e-14)
    assert not torch.allclose(taylor_step(z, d, derivatives[:3]), end, atol=1e-6)


@pytest.mark.parametrize("nodes", [[0.9, 0.8, 0.65], [0.1, 0.3], [0.95, 0.9, 0.8, 0.6, 0.5]])
def test_difference_weights_are_exact_on_polynomials(nodes):
    for order in range(1, len(nodes)):
        for at in nodes:
            weights = difference_weights(nodes, at, order)
            for degree in range(len(nodes)):
                found = sum(w * x**degree for w, x in zip(weights, nodes, strict=True))
                exact = math.perm(degree, order) * at ** (degree - order) if degree >= order else 0
                assert found == pytest.approx(exact, abs=1e-8)


def test_even_nodes_give_equation_11():
    h = 0.02
    weights = difference_weights([0.5 + h, 0.5, 0.5 - h], 0.5, 1)
    # (v_{n-1} - v_{n+1}) / (2 dsigma) with dsigma = sigma_{n-1} - sigma_n = -h
    assert weights == pytest.approx([1 / (2 * h), 0, -1 / (2 * h)], abs=1e-9)
    second = difference_weights([0.5 + h, 0.5, 0.5 - h], 0.5, 2)
    assert second == pytest.approx([1 / h**2, -2 / h**2, 1 / h**2])
    with pytest.raises(ValueError, match="needs 3 nodes"):
        difference_weights([0.1, 0.2], 0.1, 2)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_stencils_are_neighbours_and_never_reach_the_end_of_the_flow(size):
    for n in range(1, 11):
        nodes = solver.stencil_nodes(n, 10, size)
        assert len(nodes) == size and n in nodes and 0 not in nodes and max(nodes) <= 10
        assert nodes == list(range(nodes[0], nodes[-1] - 1, -1))
    assert solver.stencil_nodes(5, 10, 3) == [6, 5, 4]
    assert solver.stencil_nodes(1, 10, 3) == [3, 2, 1]  # one-sided: no velocity at sigma = 0
    assert solver.stencil_nodes(10, 10, 3) == [10, 9, 8]  # one-sided: nothing before noise
    assert solver.stencil_nodes(1, 2, 3) == [2, 1]  # a flow of two steps has no more


def polynomial_flow(sigma, degree):
    """Trajectory whose velocity is a polynomial in sigma; v[0] is None, as Euler leaves it."""
    a = start(degree + 1, 1, 2, 1, 3, 3, seed=4)
    v = [sum(a[j] * s**j for j in range(degree + 1)) for s in sigma.tolist()]

    def derivative(k, s):
        return sum(math.perm(j, k) * a[j] * s ** (j - k) for j in range(k, degree + 1))

    z = [sum(a[j] * s ** (j + 1) / (j + 1) for j in range(degree + 1)) for s in sigma.tolist()]
    return Trajectory(sigma, z, [None, *v[1:]]), derivative


@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_lr_derivatives_are_exact_as_far_as_their_stencil_reaches(order):
    """Three nodes up to K = 3, wider ones beyond: exact for velocities of degree max(3, K) - 1."""
    sigma = sigma_grid(10, 7.0)
    low, derivative = polynomial_flow(sigma, max(3, order) - 1)
    for n in range(1, 11):
        found = solver.lr_derivatives(low, n, order)
        assert len(found) == order - 1
        for k, d in enumerate(found, start=1):
            exact = derivative(k, float(sigma[n]))
            assert float((d - exact).abs().max()) < 1e-8 * max(1, float(exact.abs().max()))


def test_central_stencil_is_equation_11_as_printed_and_one_sided_at_the_ends():
    sigma = sigma_grid(10, 7.0)
    low, derivative = polynomial_flow(sigma, 2)
    for n in range(2, 10):
        (d,) = solver.lr_derivatives(low, n, 2, "central")
        step = float(sigma[n - 1] - sigma[n])
        assert torch.allclose(d, (low.v[n - 1] - low.v[n + 1]) / (2 * step), rtol=1e-12)
    for n in (1, 10):  # a neighbour is missing: weights of the actual nodes
        (d,) = solver.lr_derivatives(low, n, 2, "central")
        assert torch.allclose(d, derivative(1, float(sigma[n])), rtol=1e-8)


def test_central_stencil_is_the_grid_one_on_even_grids_and_another_on_uneven_ones(engine):
    for shift, same in ((1.0, True), (3.0, False)):
        run = engine(12, shift)
        low = run.high_flow(Z1, 12)
        grid, central = (
            run.high_flow(Z1, 12, LRI(low, lambda d: d, 2, stencil)).z[0]
            for stencil in ("grid", "central")
        )
        assert torch.allclose(grid, central, atol=1e-12) == same
        assert float((grid - central).abs().max()) < 0.1  # still the same flow


def test_lri_applies_U_to_every_derivative():
    sigma = sigma_grid(10, 3.0)
    low, derivative = polynomial_flow(sigma, 2)
    lri = LRI(low, upsample=lambda d: 2 * d, order=3)
    found = lri.derivatives(4, sigma.tolist(), None, None, None)
    for k, d in enumerate(found, start=1):
        assert torch.allclose(d, 2 * derivative(k, float(sigma[4])), rtol=1e-8)


@pytest.mark.parametrize("r", [1, 2, 4])
def test_derivative_at_equal_snr_follows_the_chain_rule(r):
    """LR x0(s) = a + b s + c s^2: v'_hr = -(1/sigma) d/dsigma x0(sigma'(sigma))."""
    a, b, c = start(3, 1, 2, 1, 3, 3, seed=5)
    grid = sigma_grid(20, 3.0)
    x0 = [a + b * s + c * s * s for s in grid.tolist()]
    v = [None] + [(0 - x) / s for x, s in zip(x0[1:], grid.tolist()[1:], strict=True)]
    low = Trajectory(grid, [torch.zeros_like(a)] * 21, v)  # any z will do: x0 = z - sigma v
    assert torch.allclose(low.x0(7), x0[7])
    for n in range(4, 21):
        sigma, h = float(grid[n]), 1e-6
        if equal_snr_sigma(sigma, r) < float(grid[1]):
            continue  # below the last LR velocity there is nothing to interpolate

        def x0_hr(s):
            inner = s / (r - (r - 1) * s)
            return a + b * inner + c * inner * inner

        expected = -(x0_hr(sigma + h) - x0_hr(sigma - h)) / (2 * h) / sigma
        found = solver.lr_derivative_at_equal_snr(low, sigma, r)
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
        mine = LRI(low, lambda d: 3 * d, 2, lr_time="snr", scale=r)
        (d,) = mine.derivatives(n, grid.tolist(), None, None, None)
        assert torch.allclose(d, 3 * found)


def test_at_scale_one_equal_snr_is_equal_sigma_along_a_real_flow():
    """v' = -(1/sigma) dx0/dsigma on the flow itself, so that both roads agree to their order."""
    grid = sigma_grid(200, 1.0)
    low = Trajectory(grid, *exact_path(grid))
    for n in (40, 100, 160):
        exact = V1(low.z[n], grid[n])
        (plain,) = solver.lr_derivatives(low, n, 2)
        snr = solver.lr_derivative_at_equal_snr(low, float(grid[n]), 1.0)
        assert torch.allclose(plain, exact, atol=2e-3)
        assert torch.allclose(snr, exact, atol=2e-3)


def test_uninformative_lr_flow_makes_lri_cv_ab2(engine):
    N, z1 = 20, start(1, 2, 4, 24, 24)
    run = engine(N, 3.0)
    junk = [None, *(start(*z1.shape, seed=n) for n in range(1, N + 1))]
    low = Trajectory(run.sigma, [z1] * (N + 1), junk)
    cv = LRICv(low, lambda d: d)
    mixed, plain = run.high_flow(z1, N, cv).z[0], run.high_flow(z1, N, AB2()).z[0]
    euler = run.high_flow(z1, N).z[0]
    lam = [x for (x,) in cv.report["lambda"].values()]
    assert len(lam) == N - 1 and lam[0] == 0  # first step Euler, second lambda = 0
    assert max(lam) < 0.01
    assert float((mixed - plain).norm()) < 0.15 * float((plain - euler).norm())
    # and junk does great harm where it is simply believed
    believed = run.high_flow(z1, N, LRI(low, lambda d: d)).z[0]
    assert float((believed - plain).norm()) > 10 * float((mixed - plain).norm())


@pytest.mark.parametrize(("shift", "gain"), [(1.0, 0.9), (3.0, 2.0), (7.0, 1.5)])
def test_a_true_lr_flow_is_used_and_beats_history_alone(engine, truth, shift, gain):
    """On an even grid little is left to gain: both err by their common first Euler step."""
    N = 20
    run = engine(N, shift)
    cv = LRICv(Trajectory(run.sigma, *exact_path(run.sigma)), lambda d: d)
    errors = {
        name: float((run.high_flow(Z1, N, s).z[0] - truth).norm())
        for name, s in (("cv", cv), ("ab2", AB2()), ("euler", Euler()))
    }
    lam = [x for clips in cv.report["lambda"].values() for x in clips]
    print(errors, lam)
    assert all(0 <= x <= 1 for x in lam)
    assert sum(lam[1:]) / (len(lam) - 1) > 0.8
    assert gain * errors["cv"] < errors["ab2"] < 0.5 * errors["euler"]


def test_lambda_is_the_share_of_the_lr_future_that_came_true():
    """LR flow twice the HR one, both quadratic on an uneven grid: lambda = 1/2, v' exact."""
    grid = sigma_grid(10, 7.0)
    high, derivative = polynomial_flow(grid, 2)
    low = Trajectory(grid, high.z, [None, *(2 * v for v in high.v[1:])])
    cv = LRICv(low, lambda d: d)
    for n in range(10, 1, -1):
        found = cv.derivatives(n, grid.tolist(), high.z[n], high.v[n], None)
        if n < 9:  # the first step is Euler, the second has lambda = 0
            assert cv.report["lambda"][n] == pytest.approx([0.5] * len(high.z[n]), abs=1e-6)
            assert torch.allclose(found[0], derivative(1, float(grid[n])), rtol=1e-5, atol=1e-6)


def test_lambda_is_fitted_per_clip(engine):
    """One clip with a true LR flow and one with junk: the junk does not spoil its neighbour."""
    N, z1 = 20, start(2, 2, 1, 16, 16)
    run = engine(N, 3.0)
    zs, vs = exact_path(run.sigma, z1)
    junk = (start(1, 2, 1, 16, 16, seed=n) for n in range(1, N + 1))
    mixed = [None, *(torch.cat([v[:1], j]) for v, j in zip(vs[1:], junk, strict=True))]
    both = run.high_flow(z1, N, LRICv(Trajectory(run.sigma, zs, mixed), lambda d: d)).z[0]
    alone = Trajectory(run.sigma, [z[:1] for z in zs], [None, *(v[:1] for v in vs[1:])])
    single = run.high_flow(z1[:1], N, LRICv(alone, lambda d: d)).z[0]
    assert torch.allclose(both[:1], single, atol=1e-12)


def test_history_starts_at_the_hand_off(engine):
    """The first step of whatever remembers is Euler wherever the flow begins."""
    run = engine(10, 3.0)
    low = run.high_flow(Z1, 10)
    for make in (AB2, AB3, lambda: LRICv(low, lambda d: d)):
        path = run.high_flow(Z1, 6, make())
        euler = run.high_flow(Z1, 6)
        assert torch.equal(path.z[5], euler.z[5])
        assert not torch.equal(path.z[4], euler.z[4])
        assert path.z[7] is None and path.v[7] is None


def test_ab3_starts_as_euler_then_ab2_and_then_takes_the_parabola(engine):
    """Third step: the integral of the parabola through three velocities, on an uneven grid."""
    run = engine(10, 7.0)
    two, three = run.high_flow(Z1, 6, AB2()), run.high_flow(Z1, 6, AB3())
    assert torch.equal(two.z[4], three.z[4]) and not torch.equal(two.z[3], three.z[3])
    s = run.sigma.tolist()
    powers = torch.tensor([[x**j for j in range(3)] for x in s[6:3:-1]], dtype=torch.float64)
    a = torch.linalg.solve(powers, torch.stack([three.v[n].flatten() for n in (6, 5, 4)]))
    whole = sum(a[j] * (s[3] ** (j + 1) - s[4] ** (j + 1)) / (j + 1) for j in range(3))
    assert torch.allclose(three.z[3], three.z[4] + whole.view(Z1.shape), atol=1e-12)


@pytest.mark.parametrize("kind", [AB2, AB3, Heun])
def test_a_flow_of_one_step_is_euler(engine, kind):
    run = engine(4, 3.0)
    assert torch.equal(run.high_flow(Z1, 1, kind()).z[0], run.high_flow(Z1, 1).z[0])


def test_heun_is_the_trapezoid_rule_and_never_asks_at_zero(engine):
    told = []

    def model(z, sigma):
        told.append(sigma)
        return velocity(z, sigma)

    run = engine(5, 3.0, model)
    path = run.high_flow(Z1, 5, Heun())
    assert len(told) == 9 and min(told) > 0
    s, t = float(run.sigma[5]), float(run.sigma[4])
    v = velocity(Z1, s)
    by_hand = Z1 + (t - s) / 2 * (v + velocity(Z1 + (t - s) * v, t))
    assert torch.allclose(path.z[4], by_hand, atol=1e-14)


def test_cosine_is_one_for_the_flow_itself_and_none_for_junk(engine):
    N, z1 = 12, start(2, 2, 2, 16, 16)
    run = engine(N, 3.0)
    high = run.high_flow(z1, N)
    same = solver.derivative_cosines(high, solver.LRI(high, lambda d: d), N)
    assert sorted(same["lri"]) == sorted(same["history"]) == list(range(2, N))
    assert all(c == pytest.approx(1, abs=1e-5) for clips in same["lri"].values() for c in clips)
    assert all(0 < c < 1 for clips in same["history"].values() for c in clips)
    v = [None, *(start(*z1.shape, seed=100 + n) for n in range(N))]
    junk = solver.LRI(Trajectory(high.sigma, high.z, v), lambda d: d)
    other = solver.derivative_cosines(high, junk, N)
    assert all(abs(c) < 0.12 for clips in other["lri"].values() for c in clips)
    back = solver.derivative_cosines(high, solver.LRI(high, lambda d: -d), N)
    assert all(c == pytest.approx(-1, abs=1e-5) for clips in back["lri"].values() for c in clips)


def gained_by_second_order(dtype):
    """Share of the second-order term of one typical step (1/50) that arrives in the state."""
    z, v, dv = (start(1, 4, 4, 16, 16, seed=i, dtype=torch.float32) for i in range(3))
    d = -0.0065  # an early step of shift 7, N = 50: half its square is 2e-5
    z, v, dv = z.to(dtype), v.to(dtype), dv.to(dtype)
    gained = taylor_step(z, d, [v, dv]).double() - taylor_step(z, d, [v]).double()
    term = d * d / 2 * dv.double()
    return float((gained * term).sum() / (term * term).sum())


def test_second_order_term_of_a_step_survives_float32_and_not_bfloat16():
    assert gained_by_second_order(torch.float32) == pytest.approx(1, abs=0.02)
    assert abs(gained_by_second_order(torch.bfloat16) - 1) > 0.5


def test_order_two_is_worth_its_name_in_float32_and_lost_in_bfloat16(engine, truth):
    """The whole loop: what K = 2 gains over Euler is there in float32, rounded away in bfloat16."""
    errors = {}
    for dtype in (torch.float32, torch.bfloat16):
        for K in (1, 2):
            run = engine(50, 1.0)
            low = Trajectory(run.sigma, *exact_path(run.sigma))
            low = Trajectory(run.sigma, low.z, [None, *(v.to(dtype) for v in low.v[1:])])
            z0 = run.high_flow(Z1.to(dtype), 50, LRI(low, lambda d: d, K)).z[0]
            errors[dtype, K] = float((z0.double() - truth).norm())
    assert errors[torch.float32, 2] < 0.1 * errors[torch.float32, 1]
    assert errors[torch.bfloat16, 2] > 0.5 * errors[torch.bfloat16, 1]


def test_state_stays_float32_when_the_model_answers_in_bfloat16(engine):
    run = engine(8, 3.0, lambda z, sigma: velocity(z.bfloat16(), sigma))
    low = run.high_flow(Z1.float(), 8)
    solvers = (Euler(), LRI(low, lambda d: d, 3), AB2(), AB3(), LRICv(low, lambda d: d))
    for solve in (*solvers, UniPC(), Heun()):
        path = run.high_flow(Z1.float(), 8, solve)
        assert all(z.dtype == torch.float32 for z in path.z)
