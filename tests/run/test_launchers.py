"""Launchers in one word: what is missing is said in one line, and Slurm is asked for the right things.

The sweeps themselves are in test_tracking.py (joblib, submitit) and test_executor.py (Ray).
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra.core.config_store import ConfigStore
from test_cli import command, refusal  # noqa: F401  (a fixture)
from test_tracking import there

from s2flow.process.ranks import free_jobs

ROOT = Path(__file__).parents[2]
RAY = pytest.mark.skipif(
    not there("hydra_plugins.hydra_ray_launcher"), reason="hydra-ray-launcher is not installed"
)
SLURM = pytest.mark.skipif(
    not there("hydra_plugins.hydra_submitit_launcher"), reason="submitit's plugin is not installed"
)


def executable(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@SLURM
def test_a_launcher_that_cannot_work_is_refused(command, monkeypatch, tmp_path, capsys):  # noqa: F811
    monkeypatch.setenv("PATH", str(tmp_path))
    refused = {
        ("-m", "hydra/launcher=slrum"): "type one of hydra/launcher=basic|gpus|",
        ("-m", "hydra/launcher=slurm"): "needs sbatch and srun",
        ("hydra/launcher=submitit_local",): "is for sweeps; type python run.py -m",
        ("-m", "hydra/launcher=slurm", "hydra.launcher.timeout_min=soon"): "a whole number",
    }
    for words, said in refused.items():
        assert said in refusal(command(*words), capsys), words


@SLURM
def test_a_plugin_that_is_missing_is_named(command, monkeypatch, capsys):  # noqa: F811
    known = ConfigStore.instance().repo["hydra"]["launcher"]
    for plugin in ("submitit_slurm", "ray", "joblib"):
        monkeypatch.delitem(known, f"{plugin}.yaml", raising=False)
    for name in ("slurm", "gpus", "ray_cluster", "joblib"):
        line = refusal(command("-m", f"hydra/launcher={name}"), capsys)
        assert f"hydra/launcher={name} needs a plugin" in line and "s2flow[cluster]" in line


@RAY
def test_gpus_without_a_gpu(command, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    line = refusal(command("-m", "hydra/launcher=gpus"), capsys)
    assert "finds no GPU" in line and "type hydra/launcher=joblib" in line


def test_joblib_takes_the_cores_that_threads_leave():
    cores = free_jobs(None)
    assert cores == free_jobs(1) >= 1
    assert free_jobs(2) == max(1, cores // 2) and free_jobs(10**6) == 1


@SLURM
def test_slurm_is_asked_for_a_gpu_and_to_requeue(tmp_path):
    """With an sbatch that keeps the script it is given and then fails: Slurm itself is not here."""
    bin_ = tmp_path / "bin"
    executable(bin_ / "srun", "#!/bin/sh\n")
    executable(bin_ / "sbatch", f"#!/bin/sh\ncp $1 {tmp_path}/script\nexit 1\n")
    path = {"PATH": f"{bin_}:{os.environ['PATH']}"}
    words = ["-m", "seed=0,1", "hydra/launcher=slurm", "hydra.launcher.partition=long"]
    words += ["hydra.launcher.timeout_min=90", f"hydra.sweep.dir={tmp_path}/sweep"]
    typed = [sys.executable, ROOT / "run.py", *words]
    done = subprocess.run(typed, cwd=tmp_path, env=os.environ | path, capture_output=True)
    assert done.returncode != 0
    asked = (tmp_path / "script").read_text()
    for flag in ("gpus-per-node=1", "requeue", "signal=USR2@120", "time=90", "partition=long"):
        assert f"#SBATCH --{flag}\n" in asked, asked
    assert "#SBATCH --array=0-1%" in asked


PYTHON = """#!/usr/bin/env bash
echo "$@" > words
[ -e young ] && touch running && exec sleep 60
trap 'echo USR1 > told; exit 75' USR1
trap 'echo TERM > told; exit 75' TERM
[ -e ends_with ] && exit $(cat ends_with)
touch running
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize("name", ["USR1", "TERM", "young"])
def test_a_shard_that_is_preempted_is_queued_again(name, tmp_path):
    """young: a Python that has no handler yet."""
    if name == "young":
        (tmp_path / "young").touch()
    process = array_task(tmp_path)
    while not (tmp_path / "running").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM if name == "TERM" else signal.SIGUSR1)
    assert process.wait() == (128 + signal.SIGUSR1 if name == "young" else 75)
    if name != "young":
        assert (tmp_path / "told").read_text().strip() == name
    assert (tmp_path / "scontrol").read_text().strip() == "requeue 4242"
    assert (tmp_path / "words").read_text() == "run.py order=1 shard=3/8\n"


@pytest.mark.parametrize("status", [0, 2])
def test_a_shard_that_is_done_or_has_failed_is_not_queued_again(status, tmp_path):
    (tmp_path / "ends_with").write_text(str(status))
    assert array_task(tmp_path).wait() == status
    assert (tmp_path / "words").exists() and not (tmp_path / "scontrol").exists()


def array_task(folder):
    """experiments/slurm_array.sh as Slurm starts task 3 of 8, below a folder."""
    executable(folder / "bin" / "python", PYTHON)
    executable(folder / "bin" / "scontrol", '#!/bin/sh\necho "$@" >> scontrol\n')
    slurm = {"SLURM_JOB_ID": "4242", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}
    env = os.environ | slurm | {"PATH": f"{folder}/bin:{os.environ['PATH']}"}
    script = ROOT / "experiments" / "slurm_array.sh"
    assert "#SBATCH --signal=B:USR1@" in script.read_text()  # a signal that it hears
    assert "#SBATCH --requeue\n" in script.read_text()
    return subprocess.Popen(["bash", script, "order=1"], cwd=folder, env=env)
