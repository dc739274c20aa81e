"""Windows decided inside the HR flow, or offline: each policy takes what its own measure says."""

import inspect
import itertools
import json
import math
import pkgutil
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from plain import coverage_exact

from s2flow import plan as planning
from s2flow import policies
from s2flow.attention import Problem, bricks
from s2flow.cascade import Cascade, LowFlowCache
from s2flow.errors import UserError
from s2flow.grid import realised_density, window_mask
from s2flow.methods import method
from s2flow.plan import Plan
from s2flow.policies import adaptive, sta, svg
from s2flow.policies.base import HR, LR, NOTHING, Calibration, Case, Policy, candidates_of
from s2flow.policies.inward import inward_box
from s2flow.policies.oracle import Oracle, coverage_of
from s2flow.policies.svg import Svg
from s2flow.recipe import CONF
from s2flow.recipe.identity import Recipe
from s2flow.run import calibrate

PROMPTS = ["a red circle moves right on a blue background", "a green square on a black background"]
TOKENS, BRICK, F_KEPT = (4, 4, 6), (1, 2, 2), 0.5
GRID = (4, 2, 3)
CASE = Case(F_KEPT, GRID, (1, 1, 1), TOKENS, BRICK, 2, 96)
ONE = SimpleNamespace(text=None, heads=None, ordered=False, all_heads=lambda x: x)  # no ranks


def peaked(heads=4, batch=2, n_text=0, seed=0):
    """q, k, v of heads that look along different axes."""
    g = torch.Generator().manual_seed(seed)
    axes = torch.stack(torch.meshgrid(*map(torch.arange, TOKENS), indexing="ij"), -1).flatten(0, 2)
    q = torch.randn(batch, heads, len(axes) + n_text, 12, generator=g)
    k = q + 0.3 * torch.randn(q.shape, generator=g)
    for m in range(heads):
        code = F.one_hot(axes[:, m % 3], 12).float() * 6
        q[:, m, : len(axes)] += code
        k[:, m, : len(axes)] += code
    return q, k, torch.randn(q.shape, generator=g)


def lr_coverage(batch=2, heads=4):
    """Of two steps and one layer, random."""
    g = torch.Generator().manual_seed(0)
    return torch.rand(3, 1, batch, heads, *GRID, generator=g)


def oracle(**options):
    return Oracle(Policy("oracle", **options), CASE, lr_coverage())


def softmax_rows(q, k):
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)


@pytest.fixture(scope="module")
def shared():
    return LowFlowCache()


@pytest.fixture
def run(micro, recipe, shared):
    def make(*overrides, prompts=PROMPTS[:1], seeds=None):
        r = recipe("steps=2", "t_i=2", "coverage_rows=64", *overrides)
        return Cascade(micro, r, prompts, seeds or [3] * len(prompts), cache=shared)

    return make


def generate(engine):
    return method(engine.recipe.method).generate(engine)


def test_oracle_covers_what_brute_force_does_and_never_less_than_the_lr_plan():
    """Every row sampled: Eq. 8 literally for every candidate, head by head."""
    q, k, v = peaked()
    guided = adaptive.decide(Policy("adaptive"), CASE, lr_coverage())
    found = oracle()
    out = found.replacer(1, "auto", ONE)(0, q, k, v)
    A = softmax_rows(q, k)
    exact = torch.stack([coverage_exact(A, TOKENS, BRICK, b) for b in found.boxes], -1)
    mine, theirs = found.plan.boxes[1, 0], guided.boxes[1, 0]
    regret = torch.zeros(2, 4)
    for b, m in itertools.product(range(2), range(4)):
        reached = exact[b, m, found.boxes.index(tuple(mine[b, m].tolist()))]
        lr = exact[b, m, found.boxes.index(tuple(theirs[b, m].tolist()))]
        assert float(reached) == pytest.approx(float(exact[b, m].max()), abs=1e-6)
        assert reached >= lr - 1e-6
        regret[b, m] = reached - lr
        M = window_mask(TOKENS, BRICK, tuple(mine[b, m].tolist()))
        inside = F.scaled_dot_product_attention(q[b, m], k[b, m], v[b, m], M)
        assert float((out[b, m] - inside).abs().max()) < 1e-5  # and it is what ran
    assert len({tuple(x) for x in mine.flatten(0, 1).tolist()}) > 1 and regret.max() > 0.01
    for clip in range(2):
        said = found.report((2, 1), clip)
        assert said["oracle"]["regret"]["1"] == pytest.approx(float(regret[clip].mean()), abs=1e-5)
        same = (mine == theirs).all(-1)[clip].float().mean()
        assert said["oracle"]["same_choice"]["1"] == pytest.approx(float(same), abs=1e-5)
        assert said["density"]["1"] == pytest.approx(found.plan.density(1, clip))
        assert said["density"]["2"] == 1  # a step that was not taken chose nothing
    again = oracle()
    again.guided = Plan(found.plan.boxes, TOKENS, BRICK)  # already the oracle's: no regret
    again.replacer(1, "auto", ONE)(0, q, k, v)
    assert again.report((2, 1), 0)["oracle"]["regret"] == {"1": 0.0}


def test_the_first_forward_of_a_step_decides_for_its_second():
    """The unconditional pass comes second, and has other q and k."""
    found = oracle()
    replace_ = found.replacer(2, "auto", ONE)
    replace_(0, *peaked(seed=0))
    before = found.plan.boxes.clone()
    replace_(0, *(x.flip(1) for x in peaked(seed=5)))
    assert torch.equal(found.plan.boxes, before)
    other = oracle()
    other.replacer(2, "auto", ONE)(0, *(x.flip(1) for x in peaked(seed=5)))
    assert not torch.equal(other.plan.boxes, before)  # it would have chosen otherwise


def test_dense_steps_and_layers_choose_nothing():
    for dense in ({"dense_steps": 1}, {"dense_layers": (0,)}):
        found = oracle(**dense)
        assert found.replacer(2, "auto", ONE)(0, *peaked()) is None  # the model's own call
        assert found.report((2, 1), 0)["density"]["2"] == 1 and not found.measured


def test_text_keys_take_part_and_padding_does_not():
    """Two clips of different text: each decides as it would alone, whatever stands in the padding."""
    q, k, v = peaked(n_text=5)
    n_video = math.prod(TOKENS)
    padded = [x.clone() for x in (q, k, v)]
    for x in padded[1:]:
        x[0, :, n_video + 2 :] = math.nan
    router = SimpleNamespace(**vars(ONE) | {"text": (2, 5)})
    case = replace(CASE, rows=32)
    for kind in (Oracle, Svg):
        policy = Policy("oracle") if kind is Oracle else Policy("svg", svg.USUAL)
        both = kind(policy, case, lr_coverage())
        out = both.replacer(1, "auto", router)(0, *padded)
        for i, n in enumerate((2, 5)):
            alone = kind(policy, case, lr_coverage(1))
            cut = [x[i : i + 1, :, : n_video + n] for x in (q, k, v)]
            mine = alone.replacer(1, "auto", ONE)(0, *cut)
            assert torch.equal(alone.plan.boxes[1, :, 0], both.plan.boxes[1, :, i])
            assert float((out[i : i + 1, :, : n_video + n] - mine).abs().max()) < 1e-5


def spatial_and_temporal_heads():
    """Head 0 looks at its own place in all frames, head 1 at all of its own frame."""
    axes = torch.stack(torch.meshgrid(*map(torch.arange, TOKENS), indexing="ij"), -1).flatten(0, 2)
    place, frame = axes[:, 1] * TOKENS[2] + axes[:, 2], axes[:, 0]
    q = 6 * torch.stack([F.one_hot(place, 24).float(), F.one_hot(frame, 24).float()])[None]
    return q, q, torch.randn(q.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rows", [8, 96])
def test_svg_takes_the_temporal_box_for_a_temporal_head_and_the_spatial_for_a_spatial(rows):
    found = Svg(Policy("svg", svg.USUAL), replace(CASE, rows=rows), lr_coverage(1, 2))
    spatial, temporal = found.boxes = [(2, 2, 3), (4, 1, 3)]
    found.replacer(1, "auto", ONE)(0, *spatial_and_temporal_heads())
    assert found.plan.boxes[1, 0, 0].tolist() == [list(temporal), list(spatial)]


def test_svg_errors_are_those_of_the_attention_output():
    q, k, v = peaked(n_text=3)
    rows, boxes = torch.tensor([0, 17, 50, 95]), [(2, 2, 3), (4, 1, 3), (4, 2, 3)]
    found = svg.output_errors(q, k, v, rows, boxes, TOKENS, BRICK)
    full = F.scaled_dot_product_attention(q, k, v)
    for i, box in enumerate(boxes):
        M = torch.ones(99, 99, dtype=torch.bool)
        M[:96, :96] = window_mask(TOKENS, BRICK, box)
        off = (F.scaled_dot_product_attention(q, k, v, M) - full)[:, :, rows]
        assert torch.allclose(found[..., i], off.square().sum((-1, -2)), rtol=1e-3, atol=1e-6)
    assert found[..., 2].abs().max() < 1e-6 and found[..., 0].max() > 1


@pytest.fixture(scope="module")
def reports(micro, recipe, shared):
    """Of every policy on one clip, s = 0.5."""
    found = {}
    for name in ("adaptive", "oracle", "svg", "moba", "inward"):
        r = recipe("steps=2", "t_i=2", "coverage_rows=64", f"windows={name}")
        engine = Cascade(micro, r, PROMPTS[:1], [3], cache=shared)
        made = generate(engine)
        assert torch.isfinite(made.latent).all()
        found[name] = made.reports[0]
    return found


def test_densities_match_and_are_recorded_per_step(reports):
    for name in ("oracle", "svg", "moba"):
        assert reports[name]["density_requested"] == 0.5
        assert list(reports[name]["density"]) == ["2", "1"]
        for n, f in reports["adaptive"]["density"].items():
            assert reports[name]["density"][n] == pytest.approx(f, rel=0.05), name
    whole = 8 * 4 * 6
    assert reports["moba"]["moba"] == {"bricks_kept": whole // 2, "bricks": whole}
    assert reports["moba"]["density"] == {"2": 0.5, "1": 0.5}
    # the LR grid's extent, 8 x 4 x 6 tokens, of 8 x 8 x 12
    assert reports["inward"]["density"] == {"2": 0.25, "1": 0.25}
    assert reports["inward"]["density_requested"] is None
    assert reports["inward"]["window_histogram"] == {"8x2x3": 2 * 6 * 4}
    assert set(reports["svg"]["window_histogram"]) <= {"4x4x6", "8x3x4"}
    for name in ("oracle", "svg"):
        assert sum(reports[name]["window_histogram"].values()) == 2 * 6 * 4


def test_regret_is_recorded_per_step_and_is_not_negative(reports):
    said = reports["oracle"]["oracle"]
    assert set(said) == {"coverage", "regret", "same_choice", "regret_by_layer"}
    for n in ("2", "1"):
        assert 0 <= said["regret"][n] < said["coverage"][n] <= 1
        assert (said["regret"][n] == 0) == (said["same_choice"][n] == 1)
        layers = said["regret_by_layer"][n]
        mean = sum(layers.values()) / len(layers)
        assert len(layers) > 1 and said["regret"][n] == pytest.approx(mean, abs=2e-6)
        assert len(set(layers.values())) > 1  # each its own


def test_oracle_decides_by_the_conditional_pass(run, micro):
    """From every row of the q and k that the model itself computes at the first HR step."""
    engine = run("windows=oracle", "coverage_rows=768", "steps=2", "t_i=1")
    low = engine.low_flow()
    windows, z = engine.plan(low), engine.hand_off(low)
    seen = {}
    with micro.router.observing(lambda layer, q, k: seen.update({layer: (q, k)})):
        micro.velocity(z, float(engine.sigma[1]), engine.condition)
    engine.high_flow(z, 1, plan=windows)
    q, k = seen[0]  # deeper layers see what windows did
    A = softmax_rows(q, k)
    exact = [coverage_exact(A, (8, 8, 12), (1, 2, 2), b) for b in windows.boxes]
    for m in range(4):
        best = max(range(len(exact)), key=lambda i: float(exact[i][0, m]))  # noqa: B023
        assert tuple(windows.plan.boxes[1, 0, 0, m].tolist()) == windows.boxes[best]


@pytest.mark.parametrize("name", ["oracle", "svg", "moba"])
def test_a_clip_is_the_same_in_any_batch(run, name):
    batch = generate(run(f"windows={name}", "sparsity=0.25", prompts=PROMPTS, seeds=[3, 4]))
    alone = generate(run(f"windows={name}", "sparsity=0.25", prompts=PROMPTS[1:], seeds=[4]))
    off = (batch.latent[1:] - alone.latent).norm() / alone.latent.norm()
    # moba's choice jumps where rounding decides between two bricks; see the next test
    assert float(off) < (3e-3 if name == "moba" else 3e-5)
    mine, other = (made.reports[i] for made, i in ((batch, 1), (alone, 0)))
    assert mine["density"] == pytest.approx(other["density"])
    assert mine.get("window_histogram") == other.get("window_histogram")


def test_the_bricks_of_a_clip_do_not_depend_on_its_batch():
    """From the same q, k, v: choice and outcome."""
    q, k, v = peaked(n_text=3)

    def attended(*qkv):
        chosen = bricks.choose_bricks(*qkv[:2], 5, TOKENS, BRICK)
        problem = Problem.of(qkv[0], TOKENS, BRICK)
        return chosen, bricks.brick_attention(*qkv, chosen, problem)

    both, out = attended(q, k, v)
    for i in range(2):
        chosen, alone = attended(*(x[i : i + 1] for x in (q, k, v)))
        assert torch.equal(chosen[0], both[i])
        assert float((alone[0] - out[i]).abs().max()) < 1e-6


def test_static_plans_are_reported_as_they_were_made(run):
    engine = run("sparsity=0.25")
    plan = engine.plan(engine.low_flow())
    said = generate(engine).reports[0]
    assert said["density"] == {str(n): plan.density(n) for n in (2, 1)}
    assert said["window_histogram"] == plan.histogram((2, 1))


@pytest.fixture(scope="module")
def dense(micro, recipe, shared):
    """The latent without windows."""
    r = recipe("steps=2", "t_i=2", "coverage_rows=64", "method=cascade")
    return generate(Cascade(micro, r, PROMPTS[:1], [3], cache=shared)).latent


def test_moba_with_all_bricks_is_the_dense_flow(run, dense):
    same = generate(run("windows=moba", "sparsity=0.999", "order=1")).latent
    assert torch.equal(same, dense)  # the model's own call
    forced = run("windows=moba", "sparsity=0.999", "order=1", "attention=reference")
    assert float((generate(forced).latent - dense).norm() / dense.norm()) < 1e-5


@pytest.mark.parametrize("name", ["oracle", "svg", "moba", "inward"])
def test_full_windows_and_guards_leave_the_model_alone(run, name, dense, monkeypatch):
    monkeypatch.setattr(planning, "window_attention", None)  # to be called is to fail
    engine = run(f"windows={name}", "windows.dense_steps=2", "order=1")
    assert torch.equal(generate(engine).latent, dense)
    assert engine.reports[0]["density"] == {"2": 1, "1": 1}


def test_inward_windows_are_the_lr_grid_around_every_query(run):
    """Brick of one token: as many keys as the model saw in training, the query's own among them."""
    assert inward_box((8, 4, 6), (8, 8, 12), (1, 1, 1)) == (8, 4, 6)
    M = window_mask((2, 8, 12), (1, 1, 1), (2, 4, 6))
    assert (M.sum(1) == 2 * 4 * 6).all() and M.diagonal().all()
    assert inward_box((8, 4, 6), (8, 7, 11), (1, 2, 4)) == (8, 2, 2)  # whole bricks
    assert inward_box((8, 9, 9), (8, 10, 10), (1, 16, 16)) == (8, 1, 1)


@pytest.fixture
def made(run):
    """A calibration of the recipes above, written by hand."""
    heads = ((4, 4, 6), (8, 2, 6), (8, 4, 3), (4, 4, 6))
    return Calibration("micro", "test", (8, 8, 12), (1, 2, 2), 0.5, ("a cat",), (heads,) * 6)


def written(path, c, **more):
    sta.write(str(path), c, **more)
    return f"windows.file={path}"


def test_a_file_is_what_its_heads_look_through(run, made, tmp_path):
    engine = run("windows=sta", written(tmp_path / "a.json", made))
    assert engine.recipe.windows.calibration == made
    plan = engine.plan(engine.low_flow())
    assert plan.boxes[1:3, :, 0].tolist() == [[[list(b) for b in h] for h in made.boxes]] * 2
    f = sum(realised_density((8, 8, 12), (1, 2, 2), b) for b in made.boxes[0]) / 4
    assert generate(run("windows=sta", f"windows.file={tmp_path / 'a.json'}")).reports[0][
        "density"
    ] == {"2": pytest.approx(f), "1": pytest.approx(f)}


def test_the_run_is_named_by_what_the_file_holds_not_by_the_file(recipe, made, tmp_path):
    one = recipe("windows=sta", written(tmp_path / "a.json", made))
    same = replace(made, prompts=("a dog",))
    two = recipe("windows=sta", written(tmp_path / "b.json", same, commit="other"))
    assert one.run_id == two.run_id and one.windows.label == f"sta {sta.content_hash(made)}"
    other = replace(made, boxes=(((8, 2, 6), *made.boxes[0][1:]), *made.boxes[1:]))
    three = recipe("windows=sta", written(tmp_path / "c.json", other))
    assert three.run_id != one.run_id
    said = json.dumps(one.identity())
    assert str(tmp_path) not in said and "calibration" not in said
    assert one.identity()["windows"]["file"] == sta.content_hash(made)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"backbone": "tiny"}, "backbone tiny"),
        ({"weights": "old"}, "weights old"),
        ({"tokens": (8, 8, 14)}, "HR grid 8x8x14"),
        ({"brick": (1, 1, 1)}, "brick_high 1x1x1"),
        ({"f": 0.25}, "f 0.25"),
    ],
)
def test_a_file_of_another_model_grid_or_f_is_refused(recipe, made, tmp_path, change, word):
    with pytest.raises(UserError, match=word):
        recipe("windows=sta", written(tmp_path / "a.json", replace(made, **change)))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"boxes": [["9x9"]]}', "\0"])
def test_what_is_no_calibration_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="fit its grid; make it anew with .* s2flow.calibrate"):
        sta.read(tmp_path / "a.json")


@pytest.mark.parametrize(
    "boxes",
    [
        (((8, 5, 6),) * 4,) * 6,
        (((8, 0, 6),) * 4,) * 6,
        (((10**30, 1, 1),),),
        (((8, 4, 6),) * 4, ((8, 4, 6),) * 3),
        ((),),
        (),
    ],
)
def test_boxes_outside_the_grid_or_of_other_heads_are_refused(made, tmp_path, boxes):
    written(tmp_path / "a.json", replace(made, boxes=boxes))
    with pytest.raises(UserError, match="fit its grid"):
        sta.read(tmp_path / "a.json")


def test_prompts_of_the_calibration_are_refused(recipe, made, tmp_path):
    r = recipe("windows=sta", written(tmp_path / "a.json", made))
    sta.check_prompts(r, ["a dog"])
    with pytest.raises(UserError, match="1 of the prompts .'a cat'"):
        sta.check_prompts(r, ["a dog", "a cat"])
    sta.check_prompts(recipe("windows=adaptive"), ["a cat"])


def test_calibration_takes_what_the_average_says(recipe):
    """Two clips and two steps, every row: the mean of Eq. 8, head by head, and its argmax."""
    watched = calibrate.MeanCoverage(TOKENS, BRICK, 96)
    exact, steps = [], ((2, 0), (1, 7))
    boxes = candidates_of(Policy("oracle"), CASE)
    for n, seed in steps:
        q, k, v = peaked(seed=seed)
        q = q if n == 2 else q.roll(1, 1)  # heads change from step to step
        assert watched.replacer(n, "auto", ONE)(0, q, k, v) is None
        watched.replacer(n, "auto", ONE)(0, 9 * q, k, v)  # the unconditional pass: not counted
        A = softmax_rows(q, k)
        exact.append(torch.stack([coverage_exact(A, TOKENS, BRICK, b) for b in boxes], -1))
    mean = torch.stack(exact).mean((0, 1))  # (heads, boxes)
    r = replace(recipe("windows=adaptive"), brick_low=BRICK, brick_high=BRICK)
    found = calibrate.chosen(watched, r, TOKENS, "test", ("a cat",))
    assert found.boxes == (tuple(boxes[i] for i in mean.argmax(-1).tolist()),)
    assert torch.allclose(
        coverage_of(watched.mean.float(), torch.tensor([found.boxes[0]])), mean.amax(-1)
    )
    assert asdict(found) | {"boxes": 0} == {
        **{"backbone": "micro", "weights": "test", "tokens": TOKENS, "brick": BRICK},
        **{"f": 0.5, "prompts": ("a cat",), "boxes": 0},
    }


def test_what_calibration_writes_a_run_reads(micro, tmp_path, monkeypatch):
    """The words of run.py; the same words with windows=sta then use it, on other prompts."""
    from hydra import compose, initialize_config_dir

    from s2flow.backbones.base import Origin
    from s2flow.process import loading
    from s2flow.recipe.resolve import resolve
    from s2flow.store.tasks import clip_tasks

    monkeypatch.setitem(loading._loaded, "here", micro)
    monkeypatch.setattr(calibrate, "load_backbone", lambda *a: micro)
    words = ["windows=sta", f"windows.file={tmp_path / 'a.json'}", "steps=2", "t_i=1"]
    words += ["prompts=world", "prompts.count=2", "batch=2", "device=cpu", "coverage_rows=16"]
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        cfg = compose("config", words)
    found = calibrate.calibrate(cfg)
    weights = loading.weights_hash("tiny", Origin.of(cfg.backbone))
    r = resolve(cfg, weights, method("s2flow").KNOBS)
    assert r.windows.calibration == found and len(found.boxes) == 6 and len(found.prompts) == 2
    boxes = candidates_of(
        Policy("adaptive"), Case(0.5, (8, 4, 6), (1, 1, 1), (8, 8, 12), (1, 2, 2))
    )
    assert {b for heads in found.boxes for b in heads} <= set(boxes)
    stored = json.loads((tmp_path / "a.json").read_text())
    assert {"commit", "prompts", "coverage", "weights"} <= set(stored)
    with pytest.raises(UserError, match="of the prompts"):
        sta.check_prompts(r, [t.prompt for t in clip_tasks(cfg)])
    for word, value in (("shard", "1/2"), ("compile", True), ("context_parallel", 2)):
        refused = cfg.copy()
        refused[word] = value
        with pytest.raises(UserError, match=f"leave {word} out"):
            calibrate.calibrate(refused)


def test_every_policy_is_a_file_of_one_shape_and_every_file_of_conf_names_one():
    files = {m.name for m in pkgutil.iter_modules(policies.__path__)} - {"base", "online"}
    assert files == set(policies.NAMES)
    for name in policies.NAMES:
        module = Policy(name).module
        assert module.READS in (LR, HR, NOTHING) and isinstance(module.BY_VOLUME, bool)
        assert set(module.OPTIONS) <= {"exponents", "target", "cap"}
        assert ("exponents" in module.OPTIONS) == hasattr(module, "USUAL")
        assert {f.name for f in fields(Recipe)} >= module.IGNORES
        assert Policy(name, getattr(module, "USUAL", ())).label.split()[0] == name
        if name != "full":  # decided for all by `policies.decide`
            assert len(inspect.signature(module.decide).parameters) == 3
    for path in (CONF / "windows").glob("*.yaml"):
        assert OmegaConf.load(path).policy in policies.NAMES


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["windows=sta"], "needs windows.file=FILE"),
        (["windows=sta", "windows.file=nowhere.json"], "nowhere.json cannot be read"),
        (["windows.policy=best"], "type one of adaptive|fixed"),
        (["windows=moba", "sparsity=0.001"], "nearest reachable f is 0.005208"),
        (["windows=oracle", "sparsity=0.002"], "nearest reachable f is 0.005208"),
        (["windows=svg", "sparsity=0.9"], "nearest f where each has is 0.875"),
        (["windows=svg", "windows.exponents=[[1,0,0]]"], "between patterns and has one"),
        (["windows=svg", "windows.exponents=[[1,0]]"], "three shares"),
        (["windows=oracle", "windows.exponents=[]"], "exponents is empty"),
        (["windows=moba", "windows.dense_steps=-1"], "negative"),
        (["brick_high=[100,100,100]"], "cannot keep f = 0.5 of the"),
        (["brick_high=[100,100,100]"], "the nearest that it reaches is 1:"),
        (["windows=oracle", "brick_high=[8,16,24]"], "cannot keep f = 0.5"),
        (["windows=coverage", "windows.cap=1e-7"], "is less than one of the"),
    ],
)
def test_what_cannot_work_is_one_line(recipe, words, said):
    with pytest.raises(UserError) as error:
        recipe(*words)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_methods_without_windows_ask_for_no_file(recipe):
    assert recipe("method=cascade", "windows=sta").run_id == recipe("method=cascade").run_id


def test_dense_layers_are_a_set(recipe):
    ids = {recipe(f"windows.dense_layers={x}").run_id for x in ("[0,1]", "[1,0]", "[0,1,1]")}
    assert len(ids) == 1
