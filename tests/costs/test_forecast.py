"""plan=true over a sweep: what is there, what lacks, LR flows that are shared, one table, one line."""

import json

from finished import fresh_flows
from test_cli import run_here

from s2flow.process import loading
from s2flow.terminal.plans import totals

SMALL = ("steps=3", "t_i=2", "frames=2", "scorer=[none]", "device=cpu", "method=cascade")


def test_a_sweep_is_planned_before_anything_starts(monkeypatch, tmp_path, capsys):
    runs = tmp_path / "runs"
    assert run_here(monkeypatch, tmp_path, *SMALL, "prompts.count=1") == 0
    before = {p: p.stat().st_mtime_ns for p in runs.rglob("*")}
    monkeypatch.setattr(loading, "load_backbone", None)
    capsys.readouterr()
    words = ("-m", "handoff=x0,latent,x0", "prompts.count=3", *SMALL)
    assert run_here(monkeypatch, tmp_path, *words, "plan=true") == 0
    out = capsys.readouterr().out
    assert "each clip and LR flow once" in out and "nothing was loaded or written" in out
    assert "{" not in out and " handoff " in out  # the knob that differs is a column
    assert run_here(monkeypatch, tmp_path, *words, "plan=json") == 0
    found = json.loads(capsys.readouterr().out)
    jobs, total = found["plans"], found["total"]
    assert [(j["clips"], j["cached"], j["missing"]) for j in jobs] == [
        (3, 1, 2), (3, 0, 3), (3, 1, 2)
    ]  # fmt: skip
    # two x0 jobs are one run; the first prompt's LR flow is in the cache, both hand-offs share them
    assert (total["clips"], total["cached"], total["missing"]) == (6, 1, 5)
    assert total["low_flows"] == 2
    clip, flow = jobs[0]["seconds_clip"], jobs[0]["seconds_low_flow"]
    assert abs(total["hours"] * 3600 - (5 * clip + 2 * flow)) < 0.4  # to four digits of an hour
    assert total["bytes_from"] == "records"
    (low,) = runs.glob("lr_cache/*")
    assert abs(low.stat().st_size - jobs[0]["bytes_low_flow"]) < 4096  # but for the header
    expected = (5 * jobs[0]["bytes_clip"] + 2 * jobs[0]["bytes_low_flow"]) / 2**30
    assert abs(total["disk_gib"] - expected) < 1e-4
    assert {p: p.stat().st_mtime_ns for p in runs.rglob("*")} == before


def test_what_is_forced_is_not_cached(monkeypatch, tmp_path, capsys):
    words = (*SMALL, "method=bicubic", "prompts.count=1")
    assert run_here(monkeypatch, tmp_path, *words) == 0
    for cache, missing in (("cached", 0), ("force", 1)):
        capsys.readouterr()
        assert run_here(monkeypatch, tmp_path, *words, f"cache={cache}", "plan=true") == 0
        first, *_ = capsys.readouterr().out.strip().splitlines()
        (path,) = tmp_path.glob("diary/plan.json")
        assert json.loads(path.read_text())["missing"] == missing
        assert ("cache=force: recorded clips, too" in first) == (cache == "force")


def test_a_single_plan_tells_what_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(loading, "low_flows", fresh_flows())
    words = (*SMALL, "prompts.count=3", f"runs_dir={tmp_path}/none")
    assert run_here(monkeypatch, tmp_path, *words, "plan=true") == 0
    out = capsys.readouterr().out.strip().splitlines()
    assert out[0].startswith("0 of 3 clip(s) are recorded, 3 missing, 3 LR flow(s) to make: ")
    assert "from pixels" in out[0] and not any(line.startswith("{") for line in out)
    assert run_here(monkeypatch, tmp_path, *words, "plan=json") == 0
    assert json.loads(capsys.readouterr().out)["plan"]["missing"] == 3
    assert not (tmp_path / "none").exists()


def test_ranks_share_a_clip_and_cost_each():
    job = {"clips": 1, "cached": 0, "gpu": True, "ranks": 4, "seconds_clip": 900.0}
    job |= {"seconds_low_flow": 900.0, "bytes_clip": 2**30, "bytes_low_flow": 2**30}
    job |= {"low_flows_limit": 2**29, "bytes_from": "pixels"}
    job["needs"] = {"every_clip": ["a"], "clips": ["a"], "low_flows": ["f"]}
    total = totals([job])
    assert total["hours"] == 2.0 and total["disk_gib"] == 1.5  # LR flows up to lr_cache_gib
