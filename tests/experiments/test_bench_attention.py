"""bench_attention.py: what its file holds, each ratio of its own group, errors that are seen."""

import json
import math

import pytest
import torch
from benchmark import EVERYWHERE, benched, script
from plain import windowed

benching, rows_of, bench = (script(n) for n in ("benching", "attention_rows", "bench_attention"))
SMALL = ("--device", "cpu", "--tokens", "3", "7", "8", "--brick", "1", "4", "4", "--heads", "3")
SMALL += ("--head-dim", "8", "--text", "3", "--repeats", "1", "--rows", "16", "--no-sweep")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setitem(benching.LEAST, "cpu", 0.0)
    monkeypatch.setitem(benching.ROTATED, "cpu", 1)


def test_the_file_holds_what_is_asked_of_it(monkeypatch, tmp_path, quick):
    found = benched(monkeypatch, tmp_path, "bench_attention", *SMALL)
    assert set(found) >= EVERYWHERE and found["finished"] and "--tokens 3 7 8" in found["command"]
    assert str(tmp_path) not in json.dumps(found)  # results name no folder of a machine
    own = found["sizes"]["own"]
    assert own["bricks"] == [3, 2, 2] and own["best_dense"] in own["dense"]
    assert own["backends"]["tiled"] is None and own["auto"] in own["backends"]
    for name in ("cudnn", "efficient", "flash-attn-4"):  # the reason stands there
        assert len(own["dense_unusable"][name]) > 10
    for r in found["rows"]:
        assert r["ratio"] == pytest.approx(r["dense_seconds"] / r["seconds"], rel=1e-3)
        assert r["best_dense"] == own["best_dense"] and 0 < r["density"] <= r["pairs"] <= 1
    for backend in (b for b, why in own["backends"].items() if why is None):
        mine = [r for r in found["rows"] if r["backend"] == backend]
        mixed = {r["f"] for r in mine if r["windows"] == "mixed"}
        assert mixed == {0.5, 0.25} and {r["f"] for r in mine} == {1.0, *mixed}
        for f in mixed:  # each candidate by itself
            shapes = {r["windows"] for r in mine if r["group"] == f"shapes {f:g}"}
            boxes = rows_of.candidates(f, rows_of.DEFAULT_EXPONENTS, (3, 2, 2))
            assert shapes == {"x".join(map(str, b)) for b in boxes} | {"whole grid"}
            assert own["error"][backend][str(f)] < 1e-5
        assert own["memory"][backend]["in_its_order"] > 0
    assert own["error"]["dense"] < 1e-5 and own["planning"]["share"] > 0
    assert found["judged"] == []  # nothing is asked of such a size
    assert any("f = 0.0156" in line for line in found["left_out"])


def test_each_ratio_is_of_its_own_group(monkeypatch, tmp_path):
    """Dense takes 10 s in the first group, 20 s in the second, ...; windows a second, or two."""
    groups = []

    def timed(calls, *_):
        groups.append(set(calls))
        of = {k: [1.0, 1.0, 1.0] for k in calls}
        if "dense" in calls:
            of["dense"] = [10.0 * len(groups)] * 3
        for k in calls:
            if getattr(k, "words", "") == "whole grid" and not k.ordered:  # our kernel run dense
                of[k] = [2.0] * 3
        return of, {}

    monkeypatch.setattr(benching, "interleaved", timed)
    found = benched(monkeypatch, tmp_path, "bench_attention", *SMALL)
    assert len({r["dense_seconds"] for r in found["rows"]}) > 3
    for r in found["rows"]:
        assert r["ratio"] == r["dense_seconds"] / r["seconds"]
        if not r["ordered"]:
            own = 2.0 if r["windows"] == "whole grid" else 1.0
            assert r["seconds"] == own
            assert r["share_of_1_over_f"] == pytest.approx(2.0 / own * r["density"], rel=1e-4)


def test_calls_take_turns_and_failing_ones_say_why():
    order = []

    def fails(i):
        raise RuntimeError("no such kernel\nand more")

    calls = {"a": lambda i: order.append("a"), "b": lambda i: order.append("b"), "c": fails}
    times, failed = benching.interleaved(calls, "cpu", 3, timed=lambda call, i: call(i))
    assert order[4:] == ["a", "b"] * 3 and set(times) == {"a", "b"}
    assert failed == {"c": "RuntimeError: no such kernel"}
    assert benching.summed_up([1.0, 2.0, 9.0])["seconds"] == 2.0


@pytest.mark.parametrize("text", [0, 3])
def test_the_exact_rows_are_those_of_the_reference(text, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "--device", "cpu", "--out", str(tmp_path)])
    args = benching.checked(benching.parser_of("x").parse_args())
    size = rows_of.Size((3, 7, 8), (1, 4, 4), 2, 8, text, torch.float32)
    one = rows_of.Bench("own", size, args, benching.Result("attention", args, sizes={}))
    rows, windows = torch.tensor([0, 5, 100, 167]), [(1, 2, 1), (3, 1, 2)]
    q, k, v = one.sets[0]
    truth = windowed(q, k, v, windows, size.tokens, size.brick, "reference")
    assert rows_of.rel_l2(one.exact(windows, rows), truth[:, :, rows]) < 1e-6
    assert rows_of.rel_l2(one.exact([(3, 2, 2)] * 2, rows), truth[:, :, rows]) > 0.1


def test_what_was_measured_outlives_a_kill(monkeypatch, tmp_path, quick):
    def killed(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(rows_of.Bench, "planning", killed)
    with pytest.raises(KeyboardInterrupt):
        benched(monkeypatch, tmp_path, "bench_attention", *SMALL)
    (file,) = tmp_path.glob("*")
    found = json.loads(file.read_text())
    assert not found["finished"] and found["rows"] and found["sizes"]["own"]["error"]


def test_judged_lines_say_asked_measured_met():
    row = {"backend": "tiled", "windows": "mixed", "ordered": False, "share_of_1_over_f": 0.96}
    rows = [row | {"size": "small", "f": 0.5, "ratio": 1.5}]
    rows += [row | {"size": "hr", "f": f, "ratio": 3.5} for f in (0.5, 0.25, 0.125)]
    memory = {"tiled": {"in_its_order_over_dense": 1.2}}
    cpu = {"dtype": "float32", "auto": "tiled", "memory": memory}
    gpu = {"dtype": "bfloat16", "auto": "tiled", "auto_in_bricks": False}
    judged = bench.judged({"rows": rows, "sizes": {"small": cpu, "hr": gpu}})
    lines = {l["what"]: l for l in judged}
    met = [l["met"] for l in judged if l["what"].startswith("small")]
    assert met == [False, True, None]
    half = lines["small: tiled at f = 0.5 over dense"]
    assert half["asked"] == ">= 1.3" and half["goal"] == 1.7 and half["goal_met"] is False
    over = [l["met"] for l in lines.values() if "over the best dense" in l["what"]]
    assert over == [True, True, False]
    assert all(l["met"] for l in lines.values() if "share of 1/f" in l["what"])


def test_a_sweep_fits_its_slope(monkeypatch, tmp_path, quick):
    rows = [{"tokens": n, "dense": {"seconds": 3e-9 * n**2}} for n in (10, 30, 70)]
    assert bench.slope(rows, "dense") == 2.0
    monkeypatch.setitem(bench.SWEEP, "cpu", ((2, 4, 4), (2, 4, 8)))
    sizes = {"small": rows_of.Size((2, 4, 8), (1, 2, 2), 2, 8, 0, torch.float32)}
    monkeypatch.setitem(bench.SIZES, "cpu", sizes)
    found = benched(monkeypatch, tmp_path, "bench_attention", "--device", "cpu", "--repeats", "1")
    assert [r["tokens"] for r in found["sweep"]] == [32, 64]
    assert all(math.isfinite(found["slopes"][k]) for k in ("dense", "window"))
    for r in found["sweep"]:
        assert r["ratio"] == pytest.approx(
            r["dense"]["seconds"] / r["window"]["seconds"], rel=1e-3
        )
