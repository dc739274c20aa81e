"""HiFlow: nothing aligned is plain Euler; alpha = 1 gives x0 the reference's low band."""

import pytest
import torch

from s2flow.errors import UserError
from s2flow.flow import v_from_x0, x0_from_v
from s2flow.methods import hiflow
from s2flow.methods.filters import butterworth

NONE = ("method=hiflow", "method.alpha=0", "method.beta=0")


def randn(seed, *shape):
    return torch.randn(*shape or (2, 3, 2, 16, 24), generator=torch.Generator().manual_seed(seed))


def test_nothing_aligned_is_its_start_and_euler_bitwise(bench, monkeypatch, plain_euler):
    z = bench.states(monkeypatch, *NONE)[0][0]
    off = bench.generate(*NONE).latent
    assert torch.equal(off, plain_euler(NONE, z))
    for words in (("method.alpha=0",), ("method.beta=0",)):  # each alone does something
        assert not torch.allclose(bench.generate("method=hiflow", *words).latent, off, atol=1e-4)


def test_the_start_is_diffusehighs(bench, monkeypatch):
    both = (bench.states(monkeypatch, f"method={m}")[0][0] for m in ("hiflow", "diffusehigh"))
    assert torch.equal(*both)


def test_zero_weights_change_no_velocity():
    params = hiflow.Params(alpha=1e-30, beta=1e-30)  # correctors are there and do nothing
    z, v = randn(0), randn(1)
    for n in (3, 2):
        out = v
        for corrector in hiflow.alignment(lambda n: randn(9 + n), 3, params):
            out = corrector(n, 0.7, z, out)
        assert torch.equal(out, v)


def test_alpha_1_gives_x0_the_low_band_of_the_reference():
    z, v, ref, sigma = randn(0), randn(1), randn(2), 0.7
    (direction,) = hiflow.alignment(lambda n: ref, 5, hiflow.Params(beta=0))
    x0, guided = (x0_from_v(z, w, sigma) for w in (v, direction(5, sigma, z, v)))
    gain = butterworth(16, 24, 0.2)
    X0, Ref, Guided = (torch.fft.rfft2(x) for x in (x0, ref, guided))
    assert torch.allclose(Guided, Ref + (1 - gain) * (X0 - Ref), atol=1e-3)
    low, high = gain > 0.999, gain < 0.001
    assert int(low.sum()) > 1 and int(high.sum()) > 50
    assert float((Guided - Ref).abs()[..., low].max()) < 2e-3 * float(Ref.abs().max())
    assert float((Guided - X0).abs()[..., high].max()) < 2e-3 * float(X0.abs().max())
    assert float((X0 - Ref).abs()[..., low].max()) > 0.1 * float(Ref.abs().max())


def test_a_reference_equal_to_x0_is_a_no_op():
    z, v, sigma = randn(0), randn(1), 0.7
    (direction,) = hiflow.alignment(lambda n: x0_from_v(z, v, sigma), 5, hiflow.Params(beta=0))
    assert torch.equal(direction(5, sigma, z, v), v)


def test_weights_fall_to_zero_over_the_flow():
    z, v, ref, sigma = randn(0), randn(1), randn(2), 0.7
    (direction,) = hiflow.alignment(lambda n: ref, 5, hiflow.Params(alpha=0.8, beta=0))
    first = direction(5, sigma, z, v) - v
    for i in range(5):
        change = direction(5 - i, sigma, z, v) - v
        assert torch.allclose(change, (1 - i / 5) * first, atol=1e-5)


def test_acceleration_is_that_of_the_reference_from_the_second_step_on():
    t_i, sigma = 4, {4: 0.9, 3: 0.7, 2: 0.4}
    z, v, ref = ({n: randn(10 * k + n) for n in sigma} for k in range(3))
    (acceleration,) = hiflow.alignment(ref.__getitem__, t_i, hiflow.Params(alpha=0, beta=0.8))
    v_ref = {n: v_from_x0(z[n], ref[n], sigma[n]) for n in sigma}
    used = {4: acceleration(4, sigma[4], z[4], v[4])}
    assert torch.equal(used[4], v[4])
    for n in (3, 2):
        used[n] = acceleration(n, sigma[n], z[n], v[n])
        beta = 0.8 * (1 - (t_i - n) / t_i)
        wanted = (1 - beta) * v[n] + beta * (used[n + 1] + v_ref[n] - v_ref[n + 1])
        assert torch.allclose(used[n], wanted, atol=1e-5)


def test_the_reference_is_the_lr_prediction_of_this_very_step(bench):
    engine = bench.engine("method=hiflow")
    low = engine.low_flow()
    reference = hiflow.upsampled(engine, low)
    for n in (1, 3):
        sigma = float(low.flow.sigma[n])
        x0 = low.flow.z[n] - sigma * low.flow.v[n]
        up = torch.nn.functional.interpolate(
            x0[0].movedim(1, 0), engine.high_shape[-2:], mode="bicubic"
        )
        assert torch.allclose(reference(n)[0], up.movedim(0, 1), atol=1e-5)
    assert not torch.allclose(reference(1), reference(3), atol=1e-2)


def test_memory_does_not_cross_flows(bench):
    one, two = (bench.generate("method=hiflow").latent for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("name", "value"), [("alpha", -0.1), ("alpha", 1.5), ("beta", 2.0), ("cutoff", 0.0)]
)
def test_out_of_range(name, value):
    said = f"method.{name}={value:g} is not in .*; type method.{name}="
    with pytest.raises(UserError, match=said):
        hiflow.Params(**{name: value})
