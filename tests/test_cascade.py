"""The engine on the real embedded backbone: identities between methods, one sigma, one LR flow."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from s2flow import handoff, solver
from s2flow import plan as planning
from s2flow.cascade import Cascade
from s2flow.errors import UserError
from s2flow.flow import noise, sigma_grid
from s2flow.grid import window_mask
from s2flow.methods import method
from s2flow.solver import Heun
from s2flow.store.lowflow import LowFlowCache

PROMPTS = [
    "a red circle moves right on a blue background",
    "a green square moves up on a black background",
    "a white triangle on a yellow background",
]
QUICK = ("steps=4", "t_i=3")
N = 4


@pytest.fixture(scope="module")
def shared():
    """LR flows of all tests that do not ask for a cache of their own."""
    return LowFlowCache()


@pytest.fixture
def run(micro, recipe, shared):
    """run("method=cascade", ...): the engine of one clip, or of several."""

    def make(*overrides, prompts=PROMPTS[:1], seeds=None, cache=shared):
        r = recipe(*QUICK, *overrides)
        return Cascade(micro, r, prompts, seeds or [7] * len(prompts), cache=cache)

    return make


def generate(engine):
    return method(engine.recipe.method).generate(engine)


def relative(a, b):
    """Largest difference over the largest value of the reference b."""
    return float((a - b).abs().max() / b.abs().max())


def test_everything_kept_at_order_one_is_the_plain_cascade_bitwise(run):
    plain = generate(run("method=cascade", cache=LowFlowCache()))
    ours = generate(run("sparsity=1", "order=1", cache=LowFlowCache()))
    assert torch.equal(ours.latent, plain.latent)
    assert torch.equal(ours.video, plain.video)
    assert set(ours.reports[0]["density"].values()) == {1}
    # ... and both knobs do matter
    for changed in (("sparsity=0.5", "order=1"), ("sparsity=1", "order=2")):
        assert relative(generate(run(*changed)).latent, plain.latent) > 1e-3


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_full_windows_forced_through_bricks_are_the_plain_cascade(run, backend):
    """Another order of summation, so not bitwise: 1e-5 of the latent's norm after three steps."""
    plain = generate(run("method=cascade")).latent
    forced = generate(run("windows=full", "order=1", f"attention={backend}")).latent
    error = float((forced - plain).norm() / plain.norm())
    print(f"{backend}: {error:.1e}")
    assert error < 1e-5


def test_forced_bricks_do_replace_the_models_own_attention(run, monkeypatch):
    calls = []

    def spy(*args, **kwargs):
        calls.append(args[3:])
        return torch.zeros_like(args[0])

    monkeypatch.setattr(planning, "window_attention", spy)
    engine = run("windows=full", "order=1", "attention=tiled")
    generate(engine)
    passes = 2  # of guidance: one plan for both
    assert len(calls) == engine.recipe.t_i * engine.backbone.router.layers * passes
    assert all(
        {tuple(b) for b in problem.windows.flatten(0, 1).tolist()} == {(8, 4, 6)}
        and (problem.tokens, problem.brick, backend) == ((8, 8, 12), (1, 2, 2), "tiled")
        for problem, backend in calls
    )


def test_windows_are_those_of_the_plan_step_by_step_and_clip_by_clip(run, monkeypatch):
    """Every head of every layer and step computes inside its own box: seen from the call itself."""
    engine = run("sparsity=0.25", prompts=PROMPTS[:2])
    low = engine.low_flow()
    plan = engine.plan(low)
    assert not torch.equal(plan.boxes[:, :, 0], plan.boxes[:, :, 1])  # clips differ
    seen, real = [], planning.window_attention

    def spy(q, k, v, problem, *rest):
        seen.append(problem.windows)
        return real(q, k, v, problem, *rest)

    monkeypatch.setattr(planning, "window_attention", spy)
    engine.high_flow(engine.hand_off(low), 3, plan=plan)
    expected = []
    for n in (3, 2, 1):
        for _ in range(2):  # conditional and unconditional pass
            expected += [plan.boxes[n, layer] for layer in range(engine.backbone.router.layers)]
    assert len(seen) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


@pytest.mark.parametrize("name", ["s2flow", "cascade"])
def test_sigma_told_is_sigma_added_is_sigma_stepped(run, micro, monkeypatch, name):
    told, model_time, added, stepped = [], [], [], []
    velocity, add_noise, step = micro.velocity, handoff.add_noise, solver.taylor_step

    def spy_velocity(z, sigma, condition):
        told.append(sigma)
        return velocity(z, sigma, condition)

    def spy_add(x0, eps, sigma):
        added.append(sigma)
        return add_noise(x0, eps, sigma)

    def spy_step(z, dsigma, derivatives):
        stepped.append(dsigma)
        return step(z, dsigma, derivatives)

    monkeypatch.setattr(micro, "velocity", spy_velocity)
    monkeypatch.setattr(handoff, "add_noise", spy_add)
    monkeypatch.setattr(solver, "taylor_step", spy_step)
    hook = micro.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: model_time.append(kwargs["timestep"]), with_kwargs=True
    )
    engine = run(f"method={name}", cache=LowFlowCache())
    try:
        generate(engine)
    finally:
        hook.remove()
    grid, t_i = engine.sigma.tolist(), 3
    low, high = grid[N:0:-1], grid[t_i:0:-1]
    assert told == low + high
    assert added == [grid[t_i]] == [told[N]]
    assert stepped == [b - a for a, b in zip(grid[N:0:-1], grid[N - 1 :: -1], strict=True)] + [
        b - a for a, b in zip(grid[t_i:0:-1], grid[t_i - 1 :: -1], strict=True)
    ]
    # the number that reaches the transformer, both passes of guidance
    assert [float(t) for t in torch.stack(model_time)[::2].flatten()] == pytest.approx(
        [1000 * s for s in told], rel=1e-7
    )
    assert torch.equal(torch.stack(model_time)[::2], torch.stack(model_time)[1::2])


def test_hand_off_state_is_at_the_level_the_hr_flow_starts_from(run):
    """From the latent itself: remove the LR flow's x0, and the known noise remains."""
    for kind in ("fresh", "aligned"):
        engine = run("method=cascade", f"noise={kind}", "handoff=latent")
        low, sigma = engine.low_flow(), float(engine.sigma[3])
        x0 = handoff.resize_latent(low.flow.x0(3), *engine.high_shape[-2:], mode="bicubic")
        eps = (engine.hand_off(low) - (1 - sigma) * x0) / sigma
        if kind == "fresh":
            known = noise(engine.high_shape, PROMPTS[0], 7, "high")[None]
            assert torch.allclose(eps, known, atol=1e-4)
        else:
            start = noise(engine.low_shape, PROMPTS[0], 7, "low")[None]
            assert torch.allclose(F.avg_pool3d(eps, (1, 2, 2)), start / 2, atol=1e-4)


def test_same_recipe_twice_is_bitwise_equal_with_a_cached_flow_or_a_fresh_one(run):
    cache = LowFlowCache()
    generate(run("sparsity=0.5", "order=3", cache=cache))  # nothing in it may be written to
    first, second = (generate(run("sparsity=0.25", cache=c)) for c in (cache, LowFlowCache()))
    assert torch.equal(first.latent, second.latent) and torch.equal(first.video, second.video)
    reused = [made.reports[0].pop("low_flow_reused") for made in (first, second)]
    assert reused == [True, False] and first.reports == second.reports
    other = generate(run("sparsity=0.25", seeds=[8]))
    assert relative(other.latent, first.latent) > 0.1


@pytest.mark.parametrize(
    ("clips", "overrides"),
    [((0,), ()), ((1,), ("solver=lri_cv", "windows=coverage")), ((2,), ("solver=unipc",))],
)
def test_a_clip_is_the_same_in_any_batch(run, clips, overrides):
    seeds = [3, 4, 5]
    batch = generate(run(*overrides, prompts=PROMPTS, seeds=seeds, cache=LowFlowCache()))
    for i in clips:
        own = {"prompts": PROMPTS[i : i + 1], "seeds": seeds[i : i + 1], "cache": LowFlowCache()}
        alone = generate(run(*overrides, **own))
        for name in ("latent", "low_video"):
            mine, truth = getattr(batch, name)[i : i + 1], getattr(alone, name)
            norm, worst = float((mine - truth).norm() / truth.norm()), relative(mine, truth)
            print(f"clip {i} {name}: norm {norm:.1e}, max {worst:.1e}")
            # float32 sums in another order, which guidance 4 and the steps of the flow magnify
            assert norm < 3e-5 and worst < 2e-4
        assert batch.reports[i] == approx_report(alone.reports[0])


def test_knobs_outside_the_recipe_do_not_change_the_report(run):
    one, other = (generate(run("solver=ab2", f"upsample={u}")) for u in ("bilinear", "nearest"))
    assert torch.equal(one.latent, other.latent) and one.reports == other.reports


def approx_report(report):
    """Equal apart from the last digits of cosines."""
    out = dict(report)
    for name, steps in report.get("derivative_cosine", {}).items():
        out["derivative_cosine"] = out["derivative_cosine"] | {
            name: pytest.approx(steps, abs=1e-3)
        }
    return out


def test_lr_flow_is_computed_once_for_all_hr_variants(run, monkeypatch):
    made, make = [], Cascade._make_low_flow
    monkeypatch.setattr(Cascade, "_make_low_flow", lambda self, i: made.append(i) or make(self, i))
    cache = LowFlowCache()
    engine = run("sparsity=0.5", cache=cache)
    first = engine.low_flow()
    assert engine.reports[0]["low_flow_reused"] is False
    variants = [
        ("sparsity=0.25",),
        ("density=per_axis", "sparsity=0.75"),
        ("order=3",),
        ("solver=ab2",),
        ("t_i=2",),
        ("windows=coverage",),
        ("windows=cubes",),
        ("noise=aligned", "handoff=latent"),
        ("attention=reference",),
        ("method=cascade",),
        ("method=bicubic",),
    ]
    for overrides in variants:
        engine = run(*overrides, cache=cache)
        assert engine.low_flow().flow.z[0] is first.flow.z[0], overrides
        assert engine.reports[0]["low_flow_reused"] is True
    again = generate(run("order=3", cache=cache))
    assert again.reports[0]["low_flow_reused"] is True
    assert made == [[0]]


def test_key_of_the_lr_flow_changes_with_all_it_depends_on(run, monkeypatch):
    cache = LowFlowCache()
    run("method=cascade", cache=cache).low_flow()
    monkeypatch.setattr(Cascade, "_make_low_flow", None)  # to make one is to fail
    run("method=cascade", cache=cache).low_flow()
    words = ("low=[32,32]", "steps=3", "shift=3", "frames=4", "guidance=1", "negative_prompt=blue")
    for overrides, given in (
        *(((word,), {}) for word in words),
        ((), {"seeds": [8]}),
        ((), {"prompts": PROMPTS[1:2]}),
    ):
        engine = run("method=cascade", *overrides, cache=cache, **given)
        with pytest.raises(TypeError):
            engine.low_flow()
    base = run("method=cascade").recipe
    other = dataclasses.replace(base, weights="retrained")
    assert other.low_identity() != base.low_identity()


def test_of_a_batch_only_the_flows_that_are_lacking_are_made(run, monkeypatch):
    made, make = [], Cascade._make_low_flow
    monkeypatch.setattr(Cascade, "_make_low_flow", lambda self, i: made.append(i) or make(self, i))
    cache, seeds = LowFlowCache(), [7, 8, 9]
    run(prompts=PROMPTS[1:2], seeds=[8], cache=cache).low_flow()
    engine = run(prompts=PROMPTS, seeds=seeds, cache=cache)
    low = engine.low_flow()
    assert made == [[0], [0, 2]]
    assert [r["low_flow_reused"] for r in engine.reports] == [False, True, False]
    whole = run(prompts=PROMPTS, seeds=seeds, cache=LowFlowCache()).low_flow()
    for n in range(len(low.flow.z)):
        torch.testing.assert_close(low.flow.z[n], whole.flow.z[n], atol=2e-4, rtol=0)
    assert low.coverage.shape == whole.coverage.shape
    torch.testing.assert_close(low.coverage, whole.coverage, atol=1e-4, rtol=0)


def spy_on_calls(micro, monkeypatch):
    calls, velocity = [], micro.velocity

    def spy(z, sigma, condition):
        calls.append((tuple(z.shape[-2:]), sigma))
        return velocity(z, sigma, condition)

    monkeypatch.setattr(micro, "velocity", spy)
    return calls


@pytest.mark.parametrize(
    ("overrides", "low", "high"),
    [
        (("method=s2flow",), N, 3),
        (("method=s2flow", "order=3"), N, 3),  # higher orders are free
        (("method=s2flow", "solver=lri_cv"), N, 3),
        (("method=s2flow", "solver=ab3"), N, 3),
        (("method=s2flow", "solver=unipc"), N, 3),  # corrected by the next step's call
        (("method=s2flow", "solver=heun"), N, 2 * 3 - 1),  # twice a step, never at sigma = 0
        (("method=cascade",), N, 3),
        (("method=bicubic",), N, 0),
        (("method=native",), 0, N),
    ],
)
def test_how_often_each_method_calls_the_model(run, micro, monkeypatch, overrides, low, high):
    calls = spy_on_calls(micro, monkeypatch)
    result = generate(run(*overrides, cache=LowFlowCache()))
    sizes = [size for size, _ in calls]
    assert sizes == [(8, 12)] * low + [(16, 24)] * high
    assert all(sigma > 0 for _, sigma in calls)
    assert torch.isfinite(result.latent).all() and torch.isfinite(result.video).all()
    assert result.video.shape == (1, 8, 64, 96, 3)
    assert (result.low_video is None) == (low == 0)


def test_lr_flow_runs_to_its_end_with_velocities_and_coverage_at_every_step(run):
    low = run().low_flow()
    assert all(z is not None and z.dtype == torch.float32 for z in low.flow.z)
    assert low.flow.v[0] is None and all(v is not None for v in low.flow.v[1:])
    assert low.coverage.shape == (N + 1, 6, 1, 4, 8, 4, 6) and low.bricks == (8, 4, 6)
    assert torch.allclose(low.coverage[..., -1, -1, -1], torch.tensor(1.0), atol=1e-5)
    assert (low.coverage[1:] > 0).all() and (low.coverage <= 1 + 1e-5).all()


def test_coverage_is_filed_under_the_step_and_layer_it_was_seen_at(run, micro):
    """Row n, layer l of the table against that layer's own q and k with n steps remaining."""
    engine = run("coverage_rows=192")  # every row, so that nothing depends on sampling
    low = engine.low_flow()
    for n in (N, 2):
        seen = {}
        with micro.router.observing(lambda layer, q, k, seen=seen: seen.update({layer: (q, k)})):
            v = micro.velocity(low.flow.z[n], float(engine.sigma[n]), engine.condition)
        assert torch.equal(v, low.flow.v[n])
        assert sorted(seen) == list(range(6))
        for layer, (q, k) in seen.items():
            A = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
            M = window_mask((8, 4, 6), (1, 1, 1), (3, 2, 4))
            exact = (A * M).sum((-1, -2)) / 192
            assert torch.allclose(low.coverage[n, layer, :, :, 2, 1, 3], exact, atol=1e-5)


def test_coverage_comes_from_the_conditional_pass_and_watching_changes_no_velocity(run, micro):
    calls, engine = [], run()
    low = engine.low_flow()  # watched
    with micro.router.observing(lambda layer, q, k: calls.append(layer)):
        micro.velocity(low.flow.z[N], 1.0, engine.condition)
    assert engine.condition.negative is not None and calls == list(range(6))
    for n in (N, 3, 1):
        unwatched = micro.velocity(low.flow.z[n], float(engine.sigma[n]), engine.condition)
        assert torch.equal(unwatched, low.flow.v[n])


def test_correctors_are_applied_in_order_and_seen_by_the_solver(run, micro):
    engine = run("method=cascade")
    z, log = engine.noise(engine.high_shape, "high"), []

    def shifted(n, sigma, z, v):
        log.append(("shift", n, sigma))
        return v + 1

    def doubled(n, sigma, z, v):
        log.append(("double", n, sigma))
        return 2 * v

    path = engine.high_flow(z, 2, correctors=[shifted, doubled])
    sigma = engine.sigma.tolist()
    assert log == [(name, n, sigma[n]) for n in (2, 1) for name in ("shift", "double")]
    raw = micro.velocity(z, sigma[2], engine.condition)
    assert torch.equal(path.v[2], 2 * (raw + 1))  # recorded as corrected
    assert torch.equal(path.z[1], z + (sigma[1] - sigma[2]) * path.v[2])
    # no corrector, or one that does nothing: the same flow bitwise
    idle = engine.high_flow(z, 2, correctors=[lambda n, sigma, z, v: v])
    assert torch.equal(idle.z[0], engine.high_flow(z, 2).z[0])


def test_windows_hold_in_the_second_evaluation_of_heun_too(run, monkeypatch):
    engine = run("sparsity=0.25", "solver=heun")
    low = engine.low_flow()
    plan, z = engine.plan(low), engine.hand_off(low)
    calls = []
    real = planning.window_attention
    spy = lambda *a, **more: calls.append(1) or real(*a, **more)  # noqa: E731
    monkeypatch.setattr(planning, "window_attention", spy)
    engine.high_flow(z, 3, Heun(), plan)
    assert len(calls) == (2 * 3 - 1) * 6 * 2


def test_nothing_outlives_the_flow_in_the_model(run, micro):
    """After a windowed flow the model is the plain one again."""
    engine = run("method=cascade")
    z = engine.noise(engine.high_shape, "high")
    before = micro.velocity(z, 0.5, engine.condition)
    generate(run("sparsity=0.25"))
    assert torch.equal(micro.velocity(z, 0.5, engine.condition), before)


@pytest.mark.parametrize(
    "overrides",
    [
        ("sparsity=0.0625",),
        ("windows=fixed", "sparsity=0.25"),
        ("windows=temporal",),
        ("windows.dense_steps=1", "windows.dense_layers=[0,5]"),
        ("density=per_axis",),
        ("handoff=noisy", "order=3"),
        ("handoff=latent", "upsample=bicubic"),
        ("lr_time=snr", "noise=aligned"),
        ("stencil=central", "upsample=nearest"),
        ("low=[24,40]", "high=[56,88]", "frames=5"),  # other brick grids, no integer scale
        ("steps=1", "t_i=1", "order=1"),
        ("steps=2", "t_i=2", "lr_time=snr"),
    ],
)
def test_no_setting_gives_nan(run, overrides):
    result = generate(run(*overrides))
    assert torch.isfinite(result.latent).all()
    assert float(result.video.min()) >= 0 and float(result.video.max()) <= 1
    t_i = run(*overrides).recipe.t_i
    assert list(result.reports[0]["density"]) == [str(n) for n in range(t_i, 0, -1)]
    assert all(0 < f <= 1 for f in result.reports[0]["density"].values())
    cosines = result.reports[0]["derivative_cosine"]["lri"]
    assert list(cosines) == [str(n) for n in range(t_i - 1, 1, -1)]
    assert all(-1.001 <= c <= 1.001 for c in cosines.values())


def test_recorded_density_is_that_of_the_windows_that_ran(run):
    report = generate(run("sparsity=0.25")).reports[0]
    assert report["density_requested"] == 0.25
    assert all(f == pytest.approx(0.25, rel=0.05) for f in report["density"].values())
    assert sum(report["window_histogram"].values()) == 3 * 6 * 4
    cube = generate(run("density=per_axis", "sparsity=0.5")).reports[0]
    assert cube["density_requested"] == 0.125


# -- more than two stages ----------------------------------------------------------------------

THREE = ("scales=[1,1.5,2]", "t_i=4", "steps=6")


def test_each_level_takes_its_share_of_the_steps_at_its_own_size(run, micro, monkeypatch):
    engine = run("method=cascade", *THREE, cache=LowFlowCache())
    engine.low_flow()
    calls = spy_on_calls(micro, monkeypatch)
    made = generate(engine)
    sigma = engine.sigma.tolist()
    (lh, lw), (h, w) = engine.low_shape[-2:], engine.high_shape[-2:]
    middle = (round(1.5 * lh), round(1.5 * lw))
    # steps 4 and 3 at the middle size, and the velocity that the next hand-off needs
    steps = [(middle, 4), (middle, 3), (middle, 2), ((h, w), 2), ((h, w), 1)]
    assert calls == [(size, sigma[n]) for size, n in steps]
    assert made.video.shape[2:4] == (64, 96) and sorted(made.reports[0]["density"]) == list("1234")


def test_the_second_hand_off_starts_from_the_x0_of_the_level_below(run, monkeypatch):
    engine = run("method=cascade", *THREE, cache=LowFlowCache())
    low = engine.low_flow()
    first, second = engine.levels()
    assert (first.size, first.n_from, first.n_to) == ((48, 72), 4, 2)
    assert (second.size, second.n_from, second.n_to) == ((64, 96), 2, 0)
    flow = first.high_flow(first.hand_off(low), 4)
    z = second.hand_off(low, flow)
    sigma = engine.sigma.tolist()[2]
    eps = second.noise(second.high_shape, "high")
    decoded = engine.backbone.decode(flow.z[2] - sigma * flow.v[2])
    up = engine.backbone.encode(handoff.resize_video(decoded, 64, 96))
    assert torch.allclose(z, (1 - sigma) * up + sigma * eps, atol=1e-5)
    assert not torch.equal(
        first.noise(first.high_shape, "high 48x72")[..., :8, :8], eps[..., :8, :8]
    )


def test_one_scale_is_the_plain_cascade_and_s2flow_guides_every_level(run, recipe):
    assert recipe("scales=[1,2]").run_id == recipe().run_id
    assert recipe("scales=[1,1.5,2]").run_id != recipe("scales=[1,1.25,2]").run_id
    assert recipe("method=native").run_id == recipe("method=native", "scales=[1,1.5,2]").run_id
    made = generate(run(*THREE, "sparsity=0.5", cache=LowFlowCache()))
    density = made.reports[0]["density"]
    assert set(density) == set("1234") and all(0.4 < f < 0.6 for f in density.values())
    assert sum(made.reports[0]["window_histogram"].values()) % 4 == 0


def test_noise_levels_of_the_switches(recipe):
    r = recipe("scales=[1,1.5,2]", "switches=[0.8,0.4]")
    grid = sigma_grid(r.steps, r.shift)
    (_, first), (_, second) = r.stages
    assert abs(grid[first] - 0.8) == (grid - 0.8).abs().min() and r.t_i == first
    assert abs(grid[second] - 0.4) == (grid - 0.4).abs().min()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("scales=[2,1]",), "does not grow from 1"),
        (("scales=[1]",), "does not grow from 1"),
        (("scales=[1,1.5]",), "ends at 1.5, and high is 2 times low"),
        (("switches=[0.5]",), "switches needs scales"),
        (("scales=[1,1.5,2]", "switches=[0.5]"), "for each of the 2 sizes"),
        (("scales=[1,1.5,2]", "switches=[0.4,0.8]"), "each needs fewer than the one before"),
        (("scales=[1,1.5,2]", "switches=[0.8,1.4]"), r"no noise level in \(0, 1\)"),
        (("scales=[1,1.5,2]", "switches=[0.8,0.4]", "t_i=3"), "set the same; leave one out"),
        (("scales=[1,1.5,2]", "t_i=1"), "each needs fewer than the one before"),
        (("scales=[1,1.5,2]", "noise=aligned"), "noise=aligned needs integer scales"),
    ],
)
def test_scales_that_cannot_work(words, said, recipe):
    with pytest.raises(UserError, match=said):
        recipe(*words)
