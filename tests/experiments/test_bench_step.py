"""bench_step.py: a step from blocks, windows that are really used, ratios of one group."""

import itertools

import pytest
import torch
from benchmark import EVERYWHERE, benched, refused, script

from s2flow import plan as plan_module

bench, models = script("bench_step"), script("random_models")
PROBLEMS = {
    "lr": models.Problem((64, 64), 9, (1, 1, 1)),  # 3 x 4 x 4 tokens
    "hr": models.Problem((128, 128), 9, (1, 2, 2)),
}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench, "sizes_of", lambda known: PROBLEMS)


def test_both_models_at_both_sizes(monkeypatch, tmp_path, small):
    words = ("--device", "cpu", "--repeats", "1", "--minutes", "2")
    found = benched(monkeypatch, tmp_path, "bench_step", *words)
    assert set(found) >= EVERYWHERE and found["finished"] and found["toy"]
    assert found.get("failed", []) == [] and found["judged"] == []
    expected = itertools.product(("lr", "hr"), bench.MODELS, (1, *bench.DENSITIES))
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
    assert [p["model"] for p in found["planning"]] == list(bench.MODELS)


def test_the_step_follows_from_its_blocks():
    rows = [
        {"all": 10.0, "double": 3.0, "single": 2.0},
        {"all": 12.0, "double": 4.0, "single": 2.0},
    ]
    step = bench.step_of(rows, {"double": 20, "single": 40})
    assert step["step_seconds"] == 5.5 + 20 * 3.5 + 40 * 2.0
    assert step["rest_seconds"]["seconds"] == 5.5


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
        plan = bench.plan_of(backbone, tokens, (1, 1, 1), 0.25)
        call = bench.windowed(backbone, plan, torch.randn(1, *shape), text)
        watch = bench.Watch({"blocks": backbone.transformer.blocks[0]}, "cpu")
        took = watch(call)
        assert 0 < took["blocks"] < took["all"]
        assert len(watch.marks["blocks"]) == 4 and len(seen) == 2  # two passes of the guidance
        assert len(set(map(tuple, torch.as_tensor(seen[0]).view(-1, 3).tolist()))) > 1  # mixed
        watch.remove()
        call(0)
        assert len(watch.marks["blocks"]) == 4


def test_bad_words_are_refused_in_a_line(monkeypatch, tmp_path, capsys):
    assert "invalid choice" in refused(
        monkeypatch, tmp_path, capsys, "bench_step", "--models", "sora"
    )
