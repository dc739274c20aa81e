"""bench_pipeline.py: every method's stages, ratios over native of the same run, sound sizes."""

import math

import pytest
import torch
from benchmark import EVERYWHERE, benched, refused, script

from s2flow.grid import brick_grid
from s2flow.windows import DEFAULT_EXPONENTS, candidates

bench, models = script("bench_pipeline"), script("random_models")
SMALL = ["--device", "cpu", "--repeats", "1", "--steps", "2", "--t-i", "1", "--sparsity", "0.5"]
VARIANTS = ["native", "cascade", "s2flow s=0.5", "s2flow s=0.5 per axis"]


def check(found):
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
    check(found)
    assert found["backbone"] == "micro" and found["shapes"]["t_i"] == 1
    model, native = found["rows"][0]["model"], found["rows"][0]["stages"]
    assert model["seconds"] == pytest.approx(
        native["hr"]["seconds"] + native["decode"]["seconds"], rel=1e-3
    )


def test_wan_at_toy_width_goes_its_whole_way(monkeypatch, tmp_path):
    wan = models.TOY["wan"]
    narrow = wan | {"transformer": wan["transformer"] | {"num_layers": 2}}
    monkeypatch.setitem(models.TOY, "wan", narrow)
    monkeypatch.setattr(bench, "TOY_SIZE", ((32, 32), (64, 64), 5, (1, 1, 1), (1, 2, 2)))
    found = benched(monkeypatch, tmp_path, "bench_pipeline", *SMALL, "--tiny")
    check(found)
    assert found["toy"] and list(tmp_path.glob("bench_pipeline_cpu_toy.json"))


@pytest.mark.parametrize("size", [*bench.SIZES, bench.TOY_SIZE])
def test_bricks_divide_every_size_and_carry_over(size):
    low, high, frames, brick_low, brick_high = size
    grids = []
    for (h, w), brick in ((low, brick_low), (high, brick_high)):
        tokens = ((frames - 1) // 4 + 1, h // 16, w // 16)
        assert all(n % b == 0 for n, b in zip(tokens, brick, strict=True))
        grids.append(brick_grid(tokens, brick))
    assert grids[0] == grids[1]
    assert math.prod(grids[0]) > 100 or size is bench.TOY_SIZE
    for f in (0.75, 0.5, 0.25, 0.125):
        assert candidates(f, DEFAULT_EXPONENTS, grids[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--backbone", "wan_1_3b"), "type --tiny"),
        (("--backbone", "micro", "--tiny"), "leave --tiny out"),
        (("--sparsity", "1.5"), "sparsity=1.5"),
        (("--steps", "0"), "steps=0"),
    ],
)
def test_bad_words_are_refused_in_a_line(words, said, monkeypatch, tmp_path, capsys):
    words = ("--device", "cpu", *words)
    answer = refused(monkeypatch, tmp_path, capsys, "bench_pipeline", *words)
    assert said in answer and answer.startswith("error: ") and "\n" not in answer
