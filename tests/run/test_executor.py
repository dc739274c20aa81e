"""executor=ray: the same clips as in one process, whoever is killed on the way."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import psutil
import pytest
import torch
from test_cli import command, refusal, run_here  # noqa: F401  (a fixture)
from test_tracking import there

from s2flow.errors import UserError
from s2flow.run import executor
from s2flow.store import load_records, read_record, sha256_of

ROOT = Path(__file__).parents[2]
SMALL = ("steps=3", "t_i=2", "frames=2", "device=cpu", "scorer=[builtin]", "threads=1")
SWEEP = ("-m", "sparsity=0.25,0.5,0.75", "prompts.count=2", *SMALL)
RAY = pytest.mark.skipif(not there("ray"), reason="ray is not installed: s2flow[cluster]")


@pytest.fixture(scope="module")
def own_ray():
    """A Ray of this process; its sockets need a short path."""
    folder = tempfile.mkdtemp(prefix="r")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        try:
            executor.start(None, 2)
        except UserError as error:
            pytest.skip(str(error))  # of a machine that is too crowded for Ray's half minute
        import ray

        yield ray
        executor._kept.clear()
        ray.shutdown()
    torch.set_num_threads(threads)
    shutil.rmtree(folder, ignore_errors=True)


def hashes(runs):
    """{record: hash of its clip} below runs; every clip has that hash."""
    found = {}
    for path in runs.glob("*/records/[!.]*.json"):
        record = read_record(path)
        assert record["sha256"] == sha256_of(path.parents[1] / record["video"])
        found[str(path.relative_to(runs))] = record["sha256"]
    return found


def at_work():
    """The actors of this process that are in the middle of a clip."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [process] if "".join(process.cmdline()).startswith("ray::Actor.make") else []
    return found


def killing(runs, times, done):
    """SIGKILL actors in the middle of clips, so many times, the n-th after n records; the victims."""
    victims, rng = [], random.Random(0)

    def watch():
        while not done.is_set() and len(victims) < times:
            if len(list(runs.glob("*/records/[!.]*.json"))) > len(victims) and at_work():
                time.sleep(rng.uniform(0, 0.2))
                for actor in at_work()[:1]:
                    actor.kill()
                    victims.append(actor.pid)
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    return victims


@pytest.mark.slow
@RAY
def test_actors_are_killed_and_the_sweep_is_whole(own_ray, monkeypatch, tmp_path, capsys):
    runs = tmp_path / "runs"
    assert run_here(monkeypatch, tmp_path, *SWEEP, f"runs_dir={tmp_path}/alone") == 0
    alone = hashes(tmp_path / "alone")
    done = threading.Event()
    victims = killing(runs, 2, done)
    words = (*SWEEP, f"runs_dir={runs}", "executor=ray", "ray.workers=2")
    try:
        assert run_here(monkeypatch, tmp_path, *words) == 0
    finally:
        done.set()
    assert len(victims) == 2, "the sweep was over before the kills"
    assert len(alone) == 6 and hashes(runs) == alone
    assert not list(runs.glob("*/failures/*"))
    table = load_records(runs)
    assert len(table) == 6 and table["score_temporal_flickering"].notna().all()
    assert capsys.readouterr().out.count("2/2") == 6  # in both tables of the two sweeps
    for row in own_ray.nodes():
        assert row["NodeManagerAddress"] == "127.0.0.1"


@RAY
def test_a_clip_that_fails_under_ray_costs_only_itself(own_ray, monkeypatch, tmp_path, capsys):
    words = ("prompts.count=3", "method=bicubic", *SMALL)
    assert run_here(monkeypatch, tmp_path, *words) == 0
    (run,) = (p.parent for p in (tmp_path / "runs").glob("*/records"))
    known = hashes(tmp_path / "runs")
    key = next((run / "records").glob("*.json")).stem
    shutil.rmtree(run)
    words += ("executor=ray", "ray.workers=1")
    (run / "clips" / f"{key}.mp4").mkdir(parents=True)  # where no clip can be written
    capsys.readouterr()
    assert run_here(monkeypatch, tmp_path, *words) == 2
    said = capsys.readouterr().err
    assert "FAILED" in said and "IsADirectoryError" in said and "1 of 3 clips failed" in said
    now = hashes(tmp_path / "runs")
    assert now.items() <= known.items() and len(now) == 2
    (failure,) = (run / "failures").glob("*.json")
    assert failure.stem == key and "IsADirectoryError" in failure.read_text()
    (run / "clips" / f"{key}.mp4").rmdir()
    words += ("cache=retry",)
    assert run_here(monkeypatch, tmp_path, *words) == 0 and hashes(tmp_path / "runs") == known


@RAY
def test_what_ray_has_no_room_for_is_refused(own_ray, command, capsys):  # noqa: F811
    for words, said in {
        "ray.workers=9": "ray.workers=9 with context_parallel=1 and threads=1 does not fit 2 cores",
        "ray.workers=2 context_parallel=2": "type ray.workers=1",
        "device=cuda": "device=c",
    }.items():
        executor._kept.clear()
        assert said in refusal(command("executor=ray", *SMALL, *words.split()), capsys)


REFUSED = {
    "executor=slurm": "type one of executor=local|executor=ray",
    "executor=ray ray.workers=0": "type ray.workers=1",
    "executor=ray ray.retries=-1": "type ray.retries=0",
    "executor=ray ray.address=http://x": "type ray.address=auto",
    "executor=ray device=cuda:1": "assigns them: type device=cuda",
    "executor=ray ray.address=127.0.0.1:1 device=cpu": "nothing answers at 127.0.0.1:1",
    "executor=ray ray.workers=two": "a whole number",
    "executor=ray ray.worker=2": "did you mean ray.workers?",
}


@RAY
@pytest.mark.parametrize("words", REFUSED)
def test_an_executor_that_cannot_work_is_refused(words, command, capsys):  # noqa: F811
    assert REFUSED[words] in refusal(command(*words.split()), capsys)


def test_without_ray(command, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(executor.importlib.util, "find_spec", lambda name: None)
    line = refusal(command("executor=ray"), capsys)
    assert 'type pip install "s2flow[cluster]"' in line


def test_a_torchrun_of_ray_drivers_is_refused(command, monkeypatch, capsys):  # noqa: F811
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(executor.importlib.util, "find_spec", lambda name: True)
    assert "leave torchrun or accelerate out" in refusal(command("executor=ray"), capsys)


@RAY
@pytest.mark.slow
def test_a_group_makes_each_clip_together_and_is_replaced_whole(own_ray, monkeypatch, tmp_path):
    """Two actors a clip; one of them is killed, the other goes with it."""
    words = ("prompts.count=3", *SMALL)
    assert run_here(monkeypatch, tmp_path, *words, f"runs_dir={tmp_path}/alone") == 0
    runs, done = tmp_path / "runs", threading.Event()
    victims = killing(runs, 1, done)
    words += (f"runs_dir={runs}", "executor=ray", "context_parallel=2")
    try:
        assert run_here(monkeypatch, tmp_path, *words) == 0
    finally:
        done.set()
    assert len(victims) == 1 and hashes(runs) == hashes(tmp_path / "alone")


HEAD = """
from s2flow.run import executor
executor.start(None, 2)
import ray
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""


@RAY
@pytest.mark.slow
def test_every_launcher_makes_the_same_clips(tmp_path):
    """Six jobs, and two that cannot work and stop no other; Ray is a cluster that runs already."""
    for plugin in ("joblib", "submitit", "ray"):
        if not there(f"hydra_plugins.hydra_{plugin}_launcher"):
            pytest.skip(f"hydra-{plugin}-launcher is not installed: s2flow[cluster]")
    folder = tempfile.mkdtemp(prefix="r")
    token = Path(folder, "token")  # of this cluster alone, nobody's in ~/.ray
    token.write_text(uuid.uuid4().hex)
    env = os.environ | {"RAY_TMPDIR": folder, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    head = [sys.executable, "-c", HEAD]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    cluster = subprocess.Popen(head, env=env, cwd=tmp_path, **pipes)
    try:
        ways = {name: (f"hydra/launcher={name}",) for name in ("basic", "joblib")}
        ways |= {name: (f"hydra/launcher={name}",) for name in ("submitit_local", "ray_cluster")}
        address = cluster.stdout.readline().strip()
        here = f"address={address}"  # auto might find another test's
        ways["ray_cluster"] += (f"hydra.launcher.ray.init.{here}",)
        ways["executor"] = ("executor=ray", f"ray.{here}")
        for name, way in ways.items():
            places = (f"runs_dir={tmp_path}/{name}", f"hydra.sweep.dir={tmp_path}/diary-{name}")
            words = ["-m", "sparsity=0.25,50,0.5,0.75", "order=1,2", *SMALL, *way, *places]
            typed = [sys.executable, ROOT / "run.py", *words]
            done = subprocess.run(typed, env=env, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 2, done.stderr
            assert done.stderr.count("sparsity=50 is not in") == 2, done.stderr
            assert len(hashes(tmp_path / "basic")) == 6
            assert hashes(tmp_path / name) == hashes(tmp_path / "basic"), name
    finally:
        cluster.communicate()  # its input ends, and so does it
        shutil.rmtree(folder, ignore_errors=True)


@RAY
@pytest.mark.slow
@pytest.mark.parametrize("group", [(), ("context_parallel=2",)], ids=["alone", "in pairs"])
def test_a_signal_to_the_driver_ends_its_actors_and_the_same_command_goes_on(group, tmp_path):
    folder, runs = tempfile.mkdtemp(prefix="r"), tmp_path / "runs"
    env = os.environ | {"RAY_TMPDIR": folder}
    words = ["prompts.count=4", *SMALL, f"runs_dir={runs}", f"hydra.run.dir={tmp_path}/diary"]
    typed = [sys.executable, ROOT / "run.py", *words, "executor=ray", *group]
    try:
        with open(tmp_path / "log", "w+") as log:
            driver = subprocess.Popen(typed, env=env, cwd=tmp_path, stdout=log, stderr=log)
            while not (hashes(runs) and at_work()):
                assert driver.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.05)
            actors = at_work()
            driver.send_signal(signal.SIGTERM)
            assert driver.wait(60) == 75, (tmp_path / "log").read_text()
        said = (tmp_path / "log").read_text()
        assert "Traceback" not in said and said.count("stopped by SIGTERM") == 1, said
        assert not psutil.wait_procs(actors, timeout=20)[1]  # Ray's own processes see it go
        kept = hashes(runs)
        assert 1 <= len(kept) < 4 and not list(runs.glob("*/failures/*"))
        done = subprocess.run(typed, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(hashes(runs)) == 4 and kept.items() <= hashes(runs).items()
        assert not list(runs.rglob(".tmp-*"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
