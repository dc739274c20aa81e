"""bench_vae.py: both autoencoders, both ways, beside the runtime model."""

import pytest
from benchmark import EVERYWHERE, benched, refused, script

bench, models = script("bench_vae"), script("random_models")


def test_both_autoencoders_both_ways(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "SMALL", {"lr": (16, 16), "hr": (32, 32)})
    words = ("--device", "cpu", "--tiny", "--repeats", "1")
    found = benched(monkeypatch, tmp_path, "bench_vae", *words)
    assert set(found) >= EVERYWHERE and found["finished"] and found.get("failed", []) == []
    expected = [
        (s, m, w) for s in ("lr", "hr") for m in bench.MODELS for w in ("decode", "encode")
    ]
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
            bench.estimated(known, "decode", (128, 128), 5, t)[0] for t in (None, (64, 48))
        )
    assert whole.flops < tiled.flops and tiled.peak < whole.peak


def test_calls_work_in_the_tiles_they_are_given():
    with models.model("wan_1_3b", toy=True) as known:
        backbone = models.build(known, "cpu", ("vae",))
        latent = bench.example(backbone, "decode", (64, 64), 1)
        whole, tiled = (bench.call_of(backbone, "decode", latent, t)(0) for t in (None, (48, 32)))
    assert whole.shape == tiled.shape == (1, 1, 64, 64, 3)
    assert not (whole == tiled).all()  # blended where tiles meet


def test_bad_words_are_refused_in_a_line(monkeypatch, tmp_path, capsys):
    said = refused(monkeypatch, tmp_path, capsys, "bench_vae", "--minutes", "-1")
    assert said == "error: minutes=-1 leaves no time; type --minutes 5"
