"""Sweeps: the LR flow once, nothing twice. What SIGKILL costs is in test_faults.py."""

import json
import subprocess
import sys
from pathlib import Path

from finished import fresh_flows, state
from test_cli import run_here

from s2flow.process import loading
from s2flow.store import load_records, read_record

SMALL = ("steps=3", "t_i=2", "frames=2", "device=cpu")


def test_a_sweep_shares_the_lr_flow_and_is_never_done_twice(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(loading, "low_flows", fresh_flows())
    words = ("-m", "sparsity=0.25,0.5,0.75", "scorer=[builtin]", *SMALL)
    assert run_here(monkeypatch, tmp_path, *words) == 0
    runs = load_records(tmp_path / "runs").set_index("sparsity")
    assert list(runs.index.sort_values()) == [0.25, 0.5, 0.75] and runs["run_id"].nunique() == 3
    records = [json.loads(p.read_text()) for p in (tmp_path / "runs").glob("*/records/*.json")]
    reused = {r["recipe"]["sparsity"]: r["low_flow_reused"] for r in records}
    assert reused == {0.25: False, 0.5: True, 0.75: True}
    for record in records:  # steps of a flow that was reused were not taken
        took = record["step_seconds"]
        assert set(took) == ({"hr"} if record["low_flow_reused"] else {"lr", "hr"})
        assert list(took["hr"]) == ["2", "1"] == list(record["density"])
    density = {r["recipe"]["sparsity"]: list(r["density"].values()) for r in records}
    assert all(abs(f - s) <= 0.1 for s, fs in density.items() for f in fs)
    out = capsys.readouterr().out
    table = out[out.rindex("\nsweep") :]  # the last thing printed is the table of all jobs
    assert all(run_id in table for run_id in runs["run_id"]) and "flicker" in table

    before = state(tmp_path / "runs")
    monkeypatch.setattr(loading, "load_backbone", None)  # not even loaded
    assert run_here(monkeypatch, tmp_path, *words) == 0
    assert state(tmp_path / "runs") == before
    out = capsys.readouterr().out
    assert all(run_id in out[out.rindex("\nsweep") :] for run_id in runs["run_id"])


def test_steps_of_an_lr_flow_are_timed_where_they_were_taken(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "low_flows", fresh_flows())
    words = ("method=cascade", "scorer=[none]", *SMALL)
    assert run_here(monkeypatch, tmp_path, "prompts.count=1", *words) == 0
    more = ("prompts.count=2", "batch=2", "handoff=latent")  # one batch, of which one is known
    assert run_here(monkeypatch, tmp_path, *more, *words) == 0
    records = [read_record(p) for p in (tmp_path / "runs").glob("*/records/*.json")]
    took = {(r["recipe"]["handoff"], *r["prompt_index"]): set(r["step_seconds"]) for r in records}
    assert took == {("x0", 0): {"lr", "hr"}, ("latent", 0): {"hr"}, ("latent", 1): {"lr", "hr"}}


def test_another_lr_size_is_another_lr_flow(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "low_flows", fresh_flows())
    words = ("-m", "low=[32,48],[24,40]", "method=bicubic", "scorer=[none]", *SMALL)
    assert run_here(monkeypatch, tmp_path, *words) == 0
    records = [read_record(p) for p in (tmp_path / "runs").glob("*/records/*.json")]
    assert [r["low_flow_reused"] for r in records] == [False, False]


def test_every_knob_that_differs_is_a_column(monkeypatch, tmp_path, capsys):
    words = ("-m", "rope=none,interpolate", "method=bicubic", "scorer=[none]", *SMALL)
    assert run_here(monkeypatch, tmp_path, *words) == 0
    out = capsys.readouterr().out
    head, *rows = (x.split() for x in out[out.rindex("\nsweep") :].splitlines() if x.strip())
    assert rows[0][:3] == ["run", "what", "rope"] and "method" not in rows[0]
    assert [row[2] for row in rows if "bicubic" in row] == ["none", "interpolate"]


def test_a_job_that_fails_does_not_hide_the_others(tmp_path):
    """A process, since Hydra raises there and the table comes at its exit."""
    words = ["-m", "sparsity=50,0.5,1", "method=bicubic", "scorer=[none]", *SMALL]
    words += [f"runs_dir={tmp_path}/runs", f"hydra.sweep.dir={tmp_path}/diary"]
    command = [sys.executable, Path(__file__).parents[2] / "run.py", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    out, err = done.stdout, done.stderr
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "sparsity=50" in errors[0] and "Traceback" not in err
    assert len(load_records(tmp_path / "runs")) == 1  # bicubic has no sparsity: one run
    assert out[out.rindex("\nsweep") :].count("bicubic") == 2  # the table, even so
