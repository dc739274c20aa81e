"""The GPU script: on a CPU with a toy configuration it goes its whole way, and its sizes are sound."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

from s2flow.windows import brick_grid

FILE = Path(__file__).parents[1] / "experiments" / "bench_backbone.py"
spec = importlib.util.spec_from_file_location("s2flow_bench_backbone", FILE)
bench_backbone = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench_backbone)


def test_the_toy_configuration_runs_end_to_end(tmp_path, monkeypatch, capsys):
    words = ["bench_backbone.py", "--tiny", "--steps", "2", "--t-i", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    bench_backbone.main()
    found = json.loads((tmp_path / "bench_backbone_tiny.json").read_text())
    assert list(found["stages"]) == ["lr", "plan", "handoff", "hr", "decode"]
    for name in ("lr", "hr", "decode"):
        stage = found["stages"][name]
        assert stage["seconds"] > 0 and stage["peak_gib"] > 0 and stage["estimated_peak_gib"] > 0
        assert stage["estimate_over_measured"] is None  # of a CPU
    assert found["command"].endswith("--tiny --steps 2 --t-i 1 --out " + str(tmp_path))
    assert found["device"].startswith("cpu") and "commit" in found and found["density"]["1"] < 1


@pytest.mark.parametrize("size", bench_backbone.SIZES)
def test_bricks_divide_every_size_and_carry_over(size):
    low, high, frames, brick_low, brick_high = size
    grids = []
    for (h, w), brick in ((low, brick_low), (high, brick_high)):
        tokens = ((frames - 1) // 4 + 1, h // 16, w // 16)
        assert all(n % b == 0 for n, b in zip(tokens, brick, strict=True))
        grids.append(brick_grid(tokens, brick))
    assert grids[0] == grids[1] and math.prod(grids[0]) > 100


def test_without_a_gpu_it_says_what_to_type(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_backbone.py"])
    monkeypatch.setattr(bench_backbone.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="type --tiny"):
        bench_backbone.main()
