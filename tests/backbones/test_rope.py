"""Positions, temperature and noise grid of the HR stage: what they change there, and nowhere else."""

import itertools
import json
import math

import pytest
import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoRotaryPosEmbed
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from plain import windowed
from test_cli import run_here
from test_stock import masked_attention
from tiny_pipelines import PROMPTS, relative

from s2flow.backbones import rope
from s2flow.backbones.swap import swapped
from s2flow.cascade import Cascade
from s2flow.errors import UserError
from s2flow.flow import Trajectory, sigma_grid
from s2flow.handoff import resize_video
from s2flow.methods import method

TOKENS = (2, 4, 6)  # of the 64x96 clip
both_models = pytest.mark.parametrize("name", ["wan", "hunyuan"])
modes = pytest.mark.parametrize("mode", ["interpolate", "ntk"])


@pytest.fixture
def engine(case, typed):
    """engine("rope=ntk", ...): a cascade of a small clip of this family."""
    return lambda *words: Cascade(case.backbone, typed(*words), PROMPTS, [5, 5])


def stock_rope(name):
    if name == "wan":
        return WanRotaryPosEmbed(24, (1, 2, 2), 32), (8, 8, 8), 10000.0
    return HunyuanVideoRotaryPosEmbed(2, 1, [4, 6, 8], 256.0), (4, 6, 8), 256.0


def angles(dims, theta, grid, scales, mode):
    """cos and sin of every token's angles, written out in float64: (L, D/2)."""
    out = []
    for place in itertools.product(*map(range, grid)):
        row = []
        for i, d, s in zip(place, dims, scales, strict=True):
            base = theta * s ** (d / (d - 2)) if mode == "ntk" else theta
            at = i / s if mode == "interpolate" else i
            row += [at * base ** (-2 * j / d) for j in range(d // 2)]
        out.append(row)
    x = torch.tensor(out, dtype=torch.float64)
    return x.cos(), x.sin()


@both_models
@modes
@pytest.mark.parametrize("scale", [(1, 2, 2), (1, 1.5, 3)])
def test_positions_equal_an_independent_computation(name, mode, scale):
    stock, dims, theta = stock_rope(name)
    x = torch.zeros(1, 1, 3, 8, 12)  # tokens (3, 4, 6)
    before = stock(x)
    with rope.scaled([stock], mode, scale):
        found = stock(x)
    truth = angles(dims, theta, (3, 4, 6), scale, mode)
    for a, b, exact in zip(found, before, truth, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert float((a.squeeze()[:, ::2] - exact).abs().max()) < 1e-6
        assert float((a - b).abs().max()) > 1e-2
    assert all(torch.equal(a, b) for a, b in zip(stock(x), before, strict=True))  # left as it was
    assert "forward" not in stock.__dict__


@both_models
@modes
def test_scale_one_is_the_stock_module_bitwise(name, mode):
    """Through our tables too, which are not used where all scales are 1."""
    stock, _, _ = stock_rope(name)
    x = torch.zeros(1, 1, 3, 8, 12)
    before = stock(x)
    ours = (rope._wan if name == "wan" else rope._hunyuan)(stock, mode, (1.0, 1.0, 1.0))
    for changed in (rope.scaled([stock], mode, (1.0, 1.0, 1.0)), swapped(stock, **ours)):
        with changed:
            assert all(torch.equal(a, b) for a, b in zip(stock(x), before, strict=True))


@pytest.mark.parametrize("d", [4, 44, 56])
@pytest.mark.parametrize("s", [1.5, 2.0, 4.0])
def test_ntk_keeps_the_highest_frequency_and_divides_the_lowest(d, s):
    # frequencies are the angles of position 1
    before, after = (
        torch.atan2(
            *(x[1, ::2].double() for x in rope.table(d, 2, 1e4, mode, s, torch.float64)[::-1])
        )
        for mode in ("none", "ntk")
    )
    assert float(after[0]) == float(before[0])
    assert abs(float(before[-1] / after[-1]) / s - 1) < 1e-5
    assert (before[1:] > after[1:]).all()


def test_a_module_without_known_positions_is_refused():
    with (
        pytest.raises(TypeError, match="Linear"),
        rope.scaled([torch.nn.Linear(1, 1)], "ntk", (1, 2, 2)),
    ):
        pass


# -- the whole HR stage -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", ["wan", "hunyuan", "wan_2_2_14b", "hunyuan_1_5"], indirect=True
)  # at 0.7 the second expert runs
def test_the_hr_stage_has_it_and_the_lr_stage_never_sees_it(case, engine):
    usual, seen = engine(), []
    backbone, a = case.backbone, usual.low_flow()
    z = usual.hand_off(a)

    def velocity(sigma=0.7):
        seen.clear()
        with backbone.router.observing(lambda layer, q, k: seen.append((q.clone(), k.clone()))):
            return backbone.velocity(z, sigma, usual.condition)

    plain, (q0, k0) = velocity(), seen[0]
    for word in ("rope=interpolate", "rope=ntk", "temperature=1.3"):
        other = engine(word)
        b = other.low_flow()
        assert all(torch.equal(x, y) for x, y in zip(a.flow.z, b.flow.z, strict=True))
        assert torch.equal(a.coverage, b.coverage) and torch.equal(other.hand_off(b), z)
        with other.high_attention():
            changed, (q, k) = velocity(), seen[0]
            last = velocity(float(other.sigma[2]))
        assert float((changed - plain).abs().max()) > 1e-4
        assert torch.equal(other.high_flow(z, 2).v[2], last)
        # text has no position, and time keeps its own
        if word.startswith("rope"):
            assert torch.equal(q[:, :, math.prod(TOKENS) :], q0[:, :, math.prod(TOKENS) :])
            first = [t * 24 for t in range(2)]  # tokens at h = w = 0
            assert torch.equal(k[:, :, first], k0[:, :, first]) and not torch.equal(k, k0)
        assert torch.equal(velocity(), plain)  # left as it was


def test_interpolated_queries_and_keys_are_those_of_positions_i_half(case, engine):
    """The model's own q, k at HR, rotated by positions that a 2x finer grid would have at i / 2."""
    run = engine("rope=interpolate")
    z = run.noise(run.high_shape, "high")
    with run.high_attention():
        cos, sin = run.backbone.ropes[0](z)
    low_cos, low_sin = run.backbone.ropes[0](run.noise(run.low_shape, "low"))
    for high, low in ((cos, low_cos), (sin, low_sin)):
        every_second = high.squeeze().view(*TOKENS, -1)[:, ::2, ::2].flatten(0, 2)
        assert torch.equal(every_second, low.squeeze())


@pytest.mark.parametrize("path", ["stock", "tiled", "reference"])
def test_temperature_is_a_factor_on_every_logit_of_self_attention(case, engine, path):
    """Dense and windowed, against softmax(1.3 q k / sqrt(d)) written out."""
    run, factor = engine("temperature=1.3"), 1.3
    z, router = run.noise(run.high_shape, "high"), run.backbone.router
    boxes = [(1, 3, 2), (2, 1, 5)] if path != "stock" else [TOKENS] * 2

    def replace(layer, q, k, v):
        if path == "stock":
            return None
        return windowed(q, k, v, boxes, TOKENS, (1, 1, 1), path, router.text)

    with run.high_attention(), router.replacing(replace):
        found = run.backbone.velocity(z, 0.7, run.condition)
    written_out = masked_attention(router, boxes, TOKENS, (1, 1, 1), factor)
    with router.replacing(written_out):
        truth = run.backbone.velocity(z, 0.7, run.condition)
    with router.replacing(replace):
        plain = run.backbone.velocity(z, 0.7, run.condition)
    assert relative(found, truth) < 1e-5
    assert relative(plain, truth) > 1e-4


def test_the_whole_method_runs_with_all_of_it(case, engine):
    run = engine("rope=ntk", "temperature=auto", "shift_high=5.0", "t_i=2")
    assert run.recipe.temperature == round(math.sqrt(math.log(48) / math.log(12)), 6)
    made = method("s2flow").generate(run)
    assert torch.isfinite(made.latent).all()
    assert set(made.reports[0]["derivative_cosine"]["lri"]) == set()  # t_i - 1 ... 2 is empty


# -- another noise grid at HR -------------------------------------------------------------------


def test_a_trajectory_on_its_own_nodes_is_itself_bitwise():
    sigma = sigma_grid(6, 3.0)
    z, v = torch.randn(2, 7, 1, 1, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    flow = Trajectory(sigma, list(z), [None, *v[1:]])
    again = flow.at(sigma)
    assert all(torch.equal(a, b) for a, b in zip(again.z, flow.z, strict=True))
    assert again.v[0] is None
    assert all(torch.equal(a, b) for a, b in zip(again.v[1:], flow.v[1:], strict=True))


def test_between_nodes_it_is_the_euler_path_and_velocities_that_change_evenly():
    """v = 3 + 2 sigma along the flow: exact everywhere above the lowest velocity."""
    sigma = sigma_grid(8, 7.0)
    v = [3 + 2 * s.float().view(1, 1, 1, 1, 1) for s in sigma]
    z = [torch.ones(1, 1, 1, 1, 1)]
    for n in range(1, 9):
        z.append(z[-1] + float(sigma[n] - sigma[n - 1]) * v[n])
    other = sigma_grid(8, 2.0)
    found = Trajectory(sigma, z, [None, *v[1:]]).at(other)
    for n in range(1, 9):
        s = max(float(other[n]), float(sigma[1]))
        assert abs(float(found.v[n]) - (3 + 2 * s)) < 1e-5
        m = next(j for j in range(1, 9) if sigma[j] >= other[n] - 1e-12)  # the step across it
        assert abs(float(found.z[n] - z[m]) - float(v[m]) * float(other[n] - sigma[m])) < 1e-5
    assert torch.equal(found.z[0], z[0]) and torch.equal(found.z[8], z[8])


@pytest.mark.parametrize("case", ["wan"], indirect=True)
def test_the_hr_stage_takes_its_own_noise_levels_and_lr_quantities_there(
    case, engine, monkeypatch
):
    run, asked = engine("shift_high=9", "sparsity=0.5", "t_i=2"), []
    levels = sigma_grid(3, 9.0).tolist()
    assert run.sigma_high.tolist() == levels and run.sigma.tolist() == sigma_grid(3, 3.0).tolist()
    low = run.low_flow()
    usual = engine("sparsity=0.5").low_flow()
    assert usual.flow.sigma.tolist() == sigma_grid(3, 3.0).tolist()
    for n in (1, 2, 3):  # coverage of the LR step whose level is nearest
        m = min((1, 2, 3), key=lambda m: abs(float(usual.flow.sigma[m]) - levels[n]))
        assert torch.equal(low.coverage[n], usual.coverage[m])
    z = run.hand_off(low)
    velocity = case.backbone.velocity
    monkeypatch.setattr(
        case.backbone, "velocity", lambda z, s, c: asked.append(s) or velocity(z, s, c)
    )
    run.high_flow(z, 2, run.solver(low), run.plan(low))
    assert asked == [levels[2], levels[1]]
    # the noise that was added is of the same level: sigma x0 apart from it, z is the noise
    eps = run.noise(run.high_shape, "high")
    up = (z - levels[2] * eps) / (1 - levels[2])
    sigma = float(usual.flow.sigma[3]), float(usual.flow.sigma[2])
    mix = (levels[2] - sigma[1]) / (sigma[0] - sigma[1])
    at = torch.lerp(usual.flow.z[2], usual.flow.z[3], mix)
    v = torch.lerp(usual.flow.v[2], usual.flow.v[3], mix)
    x0 = case.backbone.decode(at - levels[2] * v)
    truth = case.backbone.encode(resize_video(x0, 64, 96))
    assert float((up - truth).abs().max()) < 1e-3 * float(truth.abs().max())


def test_a_record_says_at_which_level_it_handed_over(monkeypatch, tmp_path):
    words = ["steps=3", "t_i=2", "frames=2", "shift_high=3", "rope=ntk", "scorer=[none]"]
    assert run_here(monkeypatch, tmp_path, "prompt=a large blue star", *words) == 0
    (path,) = tmp_path.glob("runs/*/records/*.json")
    record = json.loads(path.read_text())
    low, high = (sigma_grid(3, k).flip(0).tolist() for k in (1.5, 3.0))
    assert record["sigmas"] == pytest.approx(low, abs=1e-7)
    assert record["sigmas_high"] == pytest.approx(high, abs=1e-7)
    assert record["sigma_handoff"] == record["sigmas_high"][1]
    assert record["recipe"]["rope"] == "ntk" and "temperature" not in record["recipe"]


# -- what cannot be typed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("rope=yarn", "rope=yarn is unknown; type one of rope=none|interpolate|ntk"),
        ("temperature=hot", "temperature=hot is not a positive number; type temperature=auto"),
        ("temperature=0", "temperature=0 is not a positive number"),
        ("temperature=-1.5", "temperature=-1.5 is not"),
        ("temperature=true", "temperature=True is not"),
        ("temperature=[1,2]", "is not a positive number"),
        ("temperature=inf", "temperature=inf is not"),
        ("shift_high=0", "shift_high=0 is not above 0 and finite; type shift_high=5"),
        ("shift_high=inf", "shift_high=inf is not above 0 and finite"),
        ("shift_high=3 order=3", "type order=2 or leave shift_high out"),
    ],
)
def test_bad_values_cost_one_line(recipe, word, said):
    with pytest.raises(UserError) as error:
        recipe(*word.split())
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_goes_together_is_accepted(recipe):
    for words in ("shift_high=1.5 order=3", "shift_high=3 order=3 solver=ab2", "shift_high=3"):
        recipe(*words.split())
    assert recipe("method=cascade", "shift_high=3", "order=3").shift_high == 3
    # the hand-off's level is looked for on the HR grid
    r = recipe("shift_high=7", "steps=50", "backbone.handoff_sigma=0.913")
    assert r.t_i == 30
