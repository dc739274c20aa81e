"""wandb sees what the store holds, offline and without a login, and never costs a clip."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from finished import finished_run, fresh_flows
from hydra import compose, initialize_config_dir
from test_cli import run_here
from wandb_log import offline_runs

from s2flow.cascade import Step
from s2flow.errors import UserError
from s2flow.process import loading
from s2flow.report.windowmap import save_windows
from s2flow.run import runner
from s2flow.store import read_run, write_json
from s2flow.store.scorebook import ScoreBook
from s2flow.tracking import tracker as tracking

wandb = pytest.importorskip("wandb")

ROOT = Path(__file__).parents[2]
SMALL = ("steps=3", "t_i=2", "frames=2", "device=cpu", "scorer=[builtin]")


def config(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", list(overrides))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Where wandb writes: a folder of this test, without anybody's login; {run id: runs} of it."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    def read():
        wandb.teardown()  # its own process may still be writing
        return offline_runs(tmp_path / "wandb")

    wandb.teardown()  # it reads the environment once
    yield read
    wandb.teardown()


def verdict(folder, record, name, value):
    """Enter a score of a clip."""
    said = {"key": Path(record["video"]).stem, "clip": record["sha256"], "scorer": name}
    said |= {"metric": "m", "status": "ok", "scores": {name: value}, "at": 1.0}
    ScoreBook(folder).add(said)


@pytest.fixture
def finished(tmp_path):
    """A run of three clips with steps, densities, windows and one score; its folder."""
    folder = finished_run(tmp_path / "runs", 3)
    for i, record in enumerate(read_run(folder)):
        record |= {"at": float(i), "sweep": "a sweep", "prompt_index": [i]}
        record |= {"sigmas": [1.0, 0.5, 0.0], "density": {"1": 0.25}}
        record["step_seconds"] = {"lr": {"2": 0.2, "1": 0.1}, "hr": {"1": 0.4}}
        key = Path(record["video"]).stem
        verdict(folder, record, "sharpness", 0.5 + i)
        record["scores"] = {"never": None}
        write_json(folder / "records" / f"{key}.json", record)
        boxes = {"steps": torch.tensor([1]), "grid": torch.tensor([[2, 4, 6]])}
        boxes["boxes"] = torch.tensor([2, 4, 3]).expand(1, 2, 2, 3)
        (folder / "windows").mkdir(exist_ok=True)
        save_windows(folder / "windows" / f"{key}.npz", boxes)
    return folder


def publish(folder, *words):
    tracking.main(["publish", str(folder.parent), *words])


def test_none_logs_nothing(monkeypatch, recipe):
    monkeypatch.setattr(wandb, "init", None)
    with tracking.tracked(config(), recipe()) as track:
        assert track is None


@pytest.mark.parametrize("word", ["mode=onlin", "videos=-1"])
def test_what_cannot_work_is_refused(word, tmp_path):
    cfg = config("tracker=wandb", f"tracker.{word}", f"runs_dir={tmp_path}")
    with pytest.raises(UserError, match=f"tracker.{word} .*; type (one of )?tracker."):
        runner.run(cfg)


@pytest.mark.parametrize(
    ("variable", "typed", "mode"),
    [
        (None, None, "offline"),
        ("disabled", None, "disabled"),
        ("online", None, "online"),
        ("dryrun", None, "offline"),
        ("online", "disabled", "disabled"),
    ],
)
def test_wandb_mode_of_the_environment_holds_unless_one_was_typed(
    variable, typed, mode, offline, monkeypatch, recipe
):
    asked = []

    def init(mode, **rest):
        asked.append(mode)
        raise OSError("no")

    monkeypatch.setattr(wandb, "init", init)
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    cfg = config("tracker=wandb", *([f"tracker.mode={typed}"] if typed else []))
    with pytest.raises(UserError), tracking.tracked(cfg, recipe()):
        pass
    assert asked == [mode]
    monkeypatch.setenv("WANDB_MODE", "foo")
    with pytest.raises(UserError, match="^WANDB_MODE=foo is unknown; type"):
        tracking.check(config("tracker=wandb").tracker)


def test_online_without_a_login_is_refused_before_anything_is_made(offline, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "load_backbone", None)  # not even loaded
    cfg = config("tracker=wandb", "tracker.mode=online", "prompts.count=1", f"runs_dir={tmp_path}")
    with pytest.raises(UserError, match="wandb cannot start: .*; mode=offline needs neither"):
        runner.run(cfg)


def test_steps_clips_videos_windows_and_tables_are_read_back(offline, finished, recipe):
    cfg = config("tracker=wandb", "tracker.group=mine", f"runs_dir={finished.parent}")
    recipe, clips = recipe("seed=1"), sorted(read_run(finished), key=lambda r: r["at"])
    finished.rename(finished.parent / recipe.run_id)
    folder = finished.parent / recipe.run_id
    with tracking.tracked(cfg, recipe, [0, 1, 2]) as track:
        track.step(Step("lr", 2, 1.0, 0.2, []))
        track.step(Step("hr", 1, 0.5, 0.4, [0.25, 0.75]))
        track.clip(clips[0], folder)
        track.step(Step("hr", 1, 0.5, 0.3, [0.5]))
    (run,) = offline()[recipe.run_id]
    assert run.run.run_group == "mine" and run.run.run_id == recipe.run_id and run.ended == 0
    assert {k: v for k, v in run.config.items() if k != "_wandb"} == recipe.identity()
    lr, hr, clip, other = run.history
    assert (lr["lr/left"], lr["lr/sigma"], lr["lr/seconds"]) == (2, 1.0, 0.2)
    assert (hr["hr/left"], hr["hr/density"], hr["hr/seconds"]) == (1, 0.5, 0.4)
    assert clip["prompt"] == clips[0]["prompt"] and clip["seconds/hr"] == 1.0
    assert clip["score/sharpness"] == clips[0]["scores"]["sharpness"]
    assert not any("never" in key for key in clip)  # None is not a number
    assert other["_step"] == tracking.ROWS_PER_CLIP  # of the next clip, as publish numbers it
    video = (folder / clips[0]["video"]).read_bytes()
    assert run.media("video/")["video/p1-s0"].read_bytes() == video
    assert run.media("windows/")["windows/p1-s0"].read_bytes()[1:4] == b"PNG"
    columns, rows = run.table("clips")
    assert {row[columns.index("prompt")] for row in rows} == {r["prompt"] for r in clips}
    assert run.table("scores") == (["score", "mean", "clips"], [["sharpness", 1.5, 3]])
    steps = [["lr", 2, 1.0, 0.2, None, 3], ["lr", 1, 0.5, 0.1, None, 3]]
    steps += [["hr", 1, 0.5, 0.4, 0.25, 3]]
    for row, expected in zip(run.table("steps")[1], steps, strict=True):
        assert row[:2] == expected[:2] and row[2:] == pytest.approx(expected[2:])
    assert run.summary["mean/score/sharpness"] == 1.5


def test_publish_sends_everything_again_by_the_same_id_with_later_scores(offline, finished):
    publish(finished, "--videos", "2")
    for record in read_run(finished):
        verdict(finished, record, "later", 0.25)
    time.sleep(1.1)  # the names of wandb's folders count seconds
    publish(finished, "--videos", "2")
    before, after = offline()[finished.name]
    for run in (before, after):
        assert run.run.run_group == "a sweep" and run.config["method"] == "native"
        assert len(run.history) == 3 * 4 and len(run.table("clips")[1]) == 3
        assert set(run.media("video/")) == {"video/p1-s0", "video/p2-s0"}
        assert set(run.media("windows/")) == {"windows/p1-s0", "windows/p2-s0"}
    assert [r["_step"] for r in before.history] == [r["_step"] for r in after.history]
    assert "later" not in str(before.table("scores"))
    assert ["later", 0.25, 3] in after.table("scores")[1]


class Server:
    """Stands for wandb with what it has of a run: rows by number, and a summary."""

    def __init__(self, rows):
        self.rows, self.summary, self.dir, self.url = rows, {}, "somewhere/files", "https://run"
        self.step = max(rows, default=-1) + 1

    def log(self, row, step):
        assert step not in self.rows and step >= self.step
        self.rows[step], self.step = row, step

    def finish(self, exit_code):
        assert exit_code == 0


def test_what_wandb_has_is_not_sent_twice_and_a_later_clip_is(monkeypatch, finished, capsys):
    rows, runs = {}, []
    init = lambda **how: runs.append((Server(rows), how)) or runs[-1][0]  # noqa: E731
    monkeypatch.setattr(wandb, "init", init)
    last = max(read_run(finished), key=lambda r: r["at"])
    file = finished / "records" / f"{Path(last['video']).stem}.json"
    held = file.read_text()
    file.unlink()
    publish(finished, "--mode", "online")
    first = dict(rows)
    publish(finished, "--mode", "online")
    assert rows == first and len(first) == 2 * 4
    file.write_text(held)
    publish(finished, "--mode", "online")
    assert len(rows) == 3 * 4 and first.items() <= rows.items()
    assert len({row["prompt"] for row in rows.values() if "prompt" in row}) == 3
    assert {how["id"] for _, how in runs} == {finished.name}
    assert {how["resume"] for _, how in runs} == {"allow"}
    assert [len(server.summary["clips"].data) for server, _ in runs] == [2, 2, 3]


def test_publish_refuses_what_it_cannot_send(tmp_path, finished, capsys):
    runs = str(finished.parent)
    for words, said in {
        (str(tmp_path / "none"),): "holds no finished clips; type",
        (runs, "--run", "x"): f"has no run x; it has {finished.name}",
        (runs, "--mode", "foo"): "--mode=foo is unknown; type one of --mode=offline",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            tracking.main(["publish", *words])
        (line,) = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2 and line.startswith("error: ") and said in line


def test_wandb_breaking_down_costs_no_clip(offline, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(loading, "low_flows", fresh_flows())
    server = Server({})
    monkeypatch.setattr(wandb, "init", lambda **how: server)
    logged = []

    def log(row, step):
        logged.append(row)
        if len(logged) > 1:
            raise ConnectionError("the wire was cut\nand more")

    server.log = log
    server.finish = None  # raises TypeError
    words = ("tracker=wandb", "prompts.count=2", "method=bicubic", f"runs_dir={tmp_path}")
    summary = runner.run(config(*words, *SMALL))
    err = capsys.readouterr().err
    assert summary["made"] == 2 and len(logged) == 2
    (line,) = [x for x in err.splitlines() if "wandb stopped" in x]
    assert "the wire was cut" in line and f"s2flow.tracking publish {tmp_path}" in line
    assert "and more" not in err and "wandb could not close" in err


MADE = {}  # what the first launcher made: (run id, clip) -> hash


def there(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize(
    "launcher", ["basic", "joblib", pytest.param("submitit_local", marks=pytest.mark.slow)]
)
def test_a_sweep_by_any_launcher_is_tracked_once(launcher, offline, monkeypatch, tmp_path):
    plugin = f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher"
    if launcher != "basic" and not there(plugin):
        pytest.skip(f"{plugin} is not installed: pip install 's2flow[cluster]'")
    words = ["-m", "tracker=wandb", "method=native,s2flow", "prompts.count=2", "tracker.videos=1"]
    words += [*SMALL, "threads=1", f"hydra.sweep.dir={tmp_path}/a/sweep"]
    words += [f"runs_dir={tmp_path}/runs"]
    before = torch.get_num_threads()
    if launcher == "basic":
        assert run_here(monkeypatch, tmp_path, *words) == 0
        assert run_here(monkeypatch, tmp_path, *words) == 0  # recorded clips log nothing
        torch.set_num_threads(before)
    else:
        words += [f"hydra/launcher={launcher}"]
        words += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
        said = subprocess.run(
            [sys.executable, ROOT / "run.py", *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert said.returncode == 0, said.stderr
        for line in said.stderr.splitlines():  # of several processes, and none is torn
            assert not line or line.startswith(("  ", "wandb ")) or "2 clip(s) to make" in line
        assert f"report  python -m s2flow.report {tmp_path}/runs" in said.stdout
    found = offline()
    runs = {p.name: read_run(p) for p in (tmp_path / "runs").glob("*") if (p / "records").exists()}
    clips = {(name, r["video"]): r["sha256"] for name, rs in runs.items() for r in rs}
    assert MADE.setdefault("basic", clips) == clips and len(clips) == 4  # by whichever launcher
    assert found.keys() == runs.keys() and len(runs) == 2
    for run_id, records in runs.items():
        (run,) = found[run_id]
        assert run.ended == 0 and run.config["method"] == records[0]["recipe"]["method"]
        assert run.run.run_group == records[0]["sweep"] == "a/sweep"
        columns, rows = run.table("clips")
        assert {r[columns.index("key")] for r in rows} == {Path(r["video"]).stem for r in records}
        assert ["temporal_flickering", 2] in [[r[0], r[2]] for r in run.table("scores")[1]]
        (video,) = run.media("video/").values()
        first = next(r for r in records if r["prompt_index"] == [0])
        assert video.read_bytes() == (tmp_path / "runs" / run_id / first["video"]).read_bytes()
        guided = run.config["method"] == "s2flow"
        assert len(run.media("windows/")) == guided
        hr = [row for row in run.history if "hr/left" in row]
        assert [r["hr/left"] for r in hr] == ([2, 1] if guided else [3, 2, 1]) * 2
        of_rows = [r for r in sorted(records, key=lambda r: r["at"]) for _ in r["density"]]
        for row, record in zip(hr, of_rows, strict=True):
            n = str(row["hr/left"])
            assert row["hr/density"] == record["density"][n]
            assert row["hr/sigma"] == pytest.approx(record["sigmas"][3 - int(n)])
            assert row["hr/seconds"] == pytest.approx(record["step_seconds"]["hr"][n], abs=1e-5)


def test_the_dashboard_shows_what_is_sent(offline, finished, tmp_path, capsys):
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is in the extra `wandb`")
    out = tmp_path / "dashboard.json"
    words = ["--entity", "me", "--project", "p", "--videos", "2", "--out", str(out)]
    tracking.main(["dashboard", "--dry-run", *words])
    made = json.loads(out.read_text())
    assert (made["entity"], made["project"]) == ("me", "p")
    sections = made["spec"]["section"]["panelBankConfig"]["sections"]
    asked = json.dumps(sections)
    publish(finished)
    (run,) = offline()[finished.name]
    sent = {*run.summary, *(k for row in run.history for k in row)}
    wanted = {"mean/seconds/all", "mean/density", "mean/seconds/hr", "hr/seconds", "lr/seconds"}
    wanted |= {"hr/density", "clips_recorded", "clips", "scores", "steps"}
    wanted |= {f"{kind}/p{i}-s0" for kind in ("video", "windows") for i in (1, 2)}
    assert all(name in asked for name in wanted) and wanted <= sent
    with pytest.raises(SystemExit):
        tracking.main(["dashboard", "--dry-run"])
    assert "--out" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # saving it needs a login
        tracking.main(["dashboard", "--entity", "me"])
    assert "wandb login" in capsys.readouterr().err.splitlines()[-1]
