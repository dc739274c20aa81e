"""bench_step.py, bench_vae.py, bench_pipeline.py: blocks, autoencoders, whole clips; bad words."""

import itertools
import math

import pytest
import torch
from benchmark import EVERYWHERE, benched, refused, script

from s2flow import plan as plan_module
from s2flow.grid import brick_grid
from s2flow.windows import DEFAULT_EXPONENTS, candidates

step, vae, pipeline, models = map(
    script, ("bench_step", "bench_vae", "bench_pipeline", "random_models")
)

# -- a step from blocks -------------------------------------------------------------------------

PROBLEMS = {
    "lr": models.Problem((64, 64), 9, (1, 1, 1)),  # 3 x 4 x 4 tokens
    "hr": models.Problem((128, 128), 9, (1, 2, 2)),
}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(step, "sizes_of", lambda known: PROBLEMS)


def test_both_models_at_both_sizes(monkeypatch, tmp_path, small):
    words = ("--device", "cpu", "--repeats", "1", "--minutes", "2")
    found = benched(monkeypatch, tmp_path, "bench_step", *words)
    assert set(found) >= EVERYWHERE and found["finished"] and found["toy"]
    assert found.get("failed", []) == [] and found["judged"] == []
    expected = itertools.product(("lr", "hr"), step.MODELS, (1, *step.DENSITIES))
    assert [(r["size"], r["model"], r["f"]) for r in found["rows"]] == list(expected)
    layers = {"hunyuan": [20, 40], "wan_1_3b": [30]}
    for r in found["rows"]:
        blocks = [(n, r["block_seconds"][k]["seconds"]) for k, n in r["layers"].items()]
        assert [n for n, _ in blocks] == layers[r["model"]]
        whole = r["rest_seconds"]["seconds"] + sum(n * s for n, s in blocks)
        assert r["step_seconds"] == pytest.approx(whole, rel=1e-3)
        same = (r["model"], r["size"])
        dense = next(d for d in found["rows"] if (d["model"], d["size"], d["f"]) == (*same, 1))
        assert r["ratio"] == pytest.approx(dense["step_seconds"] / r["step_seconds"], rel=1e-3)
        assert r["best_dense"] in dense["dense_kernels"] and r["density"] <= r["f"] * 1.05
        assert r["estimate"]["ratio"] >= 1 and r["estimate"]["pflop"] > 0
    assert [p["model"] for p in found["planning"]] == list(step.MODELS)


def test_the_step_follows_from_its_blocks():
    rows = [
        {"all": 10.0, "double": 3.0, "single": 2.0},
        {"all": 12.0, "double": 4.0, "single": 2.0},
    ]
    found = step.step_of(rows, {"double": 20, "single": 40})
    assert found["step_seconds"] == 5.5 + 20 * 3.5 + 40 * 2.0
    assert found["rest_seconds"]["seconds"] == 5.5


def test_blocks_are_timed_inside_and_windows_are_used(monkeypatch, small):
    with models.model("wan_1_3b", toy=True) as known:
        backbone = models.build(known, "cpu", ("transformer",), num_layers=1)
        shape = backbone.latent_shape(64, 64, 9)
        tokens = backbone.token_grid(shape)
        text = models.random_condition(backbone, 1, 5.0)
        seen, attend = [], plan_module.window_attention

        def counted(q, k, v, problem, *rest):
            seen.append(problem.windows)
            return attend(q, k, v, problem, *rest)

        monkeypatch.setattr(plan_module, "window_attention", counted)
        plan = step.plan_of(backbone, tokens, (1, 1, 1), 0.25)
        call = step.windowed(backbone, plan, torch.randn(1, *shape), text)
        watch = step.Watch({"blocks": backbone.transformer.blocks[0]}, "cpu")
        took = watch(call)
        assert 0 < took["blocks"] < took["all"]
        assert len(watch.marks["blocks"]) == 4 and len(seen) == 2  # two passes of the guidance
        assert len(set(map(tuple, torch.as_tensor(seen[0]).view(-1, 3).tolist()))) > 1  # mixed
        watch.remove()
        call(0)
        assert len(watch.marks["blocks"]) == 4


# -- autoencoders -------------------------------------------------------------------------------


def test_both_autoencoders_both_ways(monkeypatch, tmp_path):
    monkeypatch.setattr(vae, "SMALL", {"lr": (16, 16), "hr": (32, 32)})
    words = ("--device", "cpu", "--tiny", "--repeats", "1")
    found = benched(monkeypatch, tmp_path, "bench_vae", *words)
    assert set(found) >= EVERYWHERE and found["finished"] and found.get("failed", []) == []
    expected = [(s, m, w) for s in ("lr", "hr") for m in vae.MODELS for w in ("decode", "encode")]
    assert [(r["size"], r["model"], r["work"]) for r in found["rows"]] == expected
    for r in found["rows"]:
        assert r["seconds"] > 0 and r["peak_gib"] > 0 and r["estimate"]["peak_gib"] > 0
        rate = r["assumed_tflops"]
        assert r["estimate"]["seconds"] == pytest.approx(r["tflop"] / rate, rel=1e-3)
        assert r["estimate"]["peak_over_measured"] is None  # of a CPU
        assert r["achieved_tflops"] == pytest.approx(r["tflop"] / r["seconds"], rel=1e-2)


def test_tiles_cost_more_work_than_whole_frames():
    with models.model("wan_1_3b", toy=True) as known:
        whole, tiled = (
            vae.estimated(known, "decode", (128, 128), 5, t)[0] for t in (None, (64, 48))
        )
    assert whole.flops < tiled.flops and tiled.peak < whole.peak


def test_calls_work_in_the_tiles_they_are_given():
    with models.model("wan_1_3b", toy=True) as known:
        backbone = models.build(known, "cpu", ("vae",))
        latent = vae.example(backbone, "decode", (64, 64), 1)
        whole, tiled = (vae.call_of(backbone, "decode", latent, t)(0) for t in (None, (48, 32)))
    assert whole.shape == tiled.shape == (1, 1, 64, 64, 3)
    assert not (whole == tiled).all()  # blended where tiles meet


# -- whole clips --------------------------------------------------------------------------------

SMALL = ["--device", "cpu", "--repeats", "1", "--steps", "2", "--t-i", "1", "--sparsity", "0.5"]
VARIANTS = ["native", "cascade", "s2flow s=0.5", "s2flow s=0.5 per axis"]


def check_pipeline(found):
    assert set(found) >= EVERYWHERE and found["finished"]
    assert [r["variant"] for r in found["rows"]] == VARIANTS
    native, cascade, half, eighth = found["rows"]
    for r in found["rows"]:
        assert r["ratio"] == pytest.approx(native["seconds"] / r["seconds"], rel=1e-3)
        for stage in ("hr", "decode"):
            one = r["stages"][stage]
            of_native = native["stages"][stage]["seconds"]
            assert one["ratio"] == pytest.approx(of_native / one["seconds"], rel=1e-3)
            assert one["peak_gib"] > 0 and one["estimated_peak_gib"] > 0
            assert one["estimate_over_measured"] is None  # of a CPU
        expected = native["model"]["seconds"] / r["model"]["seconds"]
        assert r["model"]["ratio"] == pytest.approx(expected, rel=1e-3)
        assert sum(s["seconds"] for s in r["stages"].values()) <= r["seconds"] * 1.01
    assert set(cascade["stages"]) >= {"text", "lr", "handoff", "hr", "decode"}
    assert "lr" not in native["stages"] and "plan" in half["stages"]
    assert native["density"] == cascade["density"] == 1 > half["density"] > eighth["density"]
    tflop = [r["stages"]["hr"]["tflop"] for r in found["rows"]]
    assert tflop[1] > tflop[2] > tflop[3] > 0


def test_the_embedded_backbone_goes_its_whole_way(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # then it is the default
    found = benched(monkeypatch, tmp_path, "bench_pipeline", *SMALL[2:])
    check_pipeline(found)
    assert found["backbone"] == "micro" and found["shapes"]["t_i"] == 1
    model, native = found["rows"][0]["model"], found["rows"][0]["stages"]
    assert model["seconds"] == pytest.approx(
        native["hr"]["seconds"] + native["decode"]["seconds"], rel=1e-3
    )


def test_wan_at_toy_width_goes_its_whole_way(monkeypatch, tmp_path):
    wan = models.TOY["wan"]
    narrow = wan | {"transformer": wan["transformer"] | {"num_layers": 2}}
    monkeypatch.setitem(models.TOY, "wan", narrow)
    monkeypatch.setattr(pipeline, "TOY_SIZE", ((32, 32), (64, 64), 5, (1, 1, 1), (1, 2, 2)))
    found = benched(monkeypatch, tmp_path, "bench_pipeline", *SMALL, "--tiny")
    check_pipeline(found)
    assert found["toy"] and list(tmp_path.glob("bench_pipeline_cpu_toy.json"))


@pytest.mark.parametrize("size", [*pipeline.SIZES, pipeline.TOY_SIZE])
def test_bricks_divide_every_size_and_carry_over(size):
    low, high, frames, brick_low, brick_high = size
    grids = []
    for (h, w), brick in ((low, brick_low), (high, brick_high)):
        tokens = ((frames - 1) // 4 + 1, h // 16, w // 16)
        assert all(n % b == 0 for n, b in zip(tokens, brick, strict=True))
        grids.append(brick_grid(tokens, brick))
    assert grids[0] == grids[1]
    assert math.prod(grids[0]) > 100 or size is pipeline.TOY_SIZE
    for f in (0.75, 0.5, 0.25, 0.125):
        assert candidates(f, DEFAULT_EXPONENTS, grids[0])


# -- bad words ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("attention", "--repeats 0", "type --repeats 3"),
        ("attention", "--name a/b", "type letters"),
        ("attention", "--sizes hr", "type small"),
        ("attention", "--tokens 0 4 4", "of 1 or more"),
        ("attention", "--tokens a", "expected 3 arguments"),
        ("attention", "--device cuda", "device=cuda: no CUDA device is here; type --device cpu"),
        ("step", "--models sora", "invalid choice"),
        ("vae", "--minutes -1", "error: minutes=-1 leaves no time; type --minutes 5"),
        ("pipeline", "--backbone wan_1_3b", "type --tiny"),
        ("pipeline", "--backbone micro --tiny", "leave --tiny out"),
        ("pipeline", "--sparsity 1.5", "sparsity=1.5"),
        ("pipeline", "--steps 0", "steps=0"),
    ],
)
def test_bad_words_are_refused_in_a_line(name, words, said, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    answer = refused(monkeypatch, tmp_path, capsys, f"bench_{name}", *words.split())
    assert said in answer
    assert "usage" in answer or (answer.startswith("error: ") and "\n" not in answer)
