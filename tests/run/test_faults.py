"""Sweeps that are killed and stopped: SIGKILL wastes a clip at most, SIGTERM leaves nothing behind.

S2FLOW_SLOW=1 pytest -s tests/run/test_faults.py runs the long form: 3 shards of 60 clips, each killed
20 times, some 10 minutes; the short one has 2 shards of 4 clips and 2 kills.
"""

import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from pandas.testing import assert_frame_equal
from test_cli import run_here

from s2flow.store import load_records, read_record, sha256_of
from s2flow.video import read_frames

HERE = Path(__file__).parents[1]
SMALL = ("steps=3", "t_i=2", "frames=2", "device=cpu", "threads=1", "scorer=[builtin]")


@pytest.fixture
def start(tmp_path):
    """start("shard=1/2"): run.py as a process of its own, which notes the clips that it begins."""
    started = []

    def typed(*words: str) -> subprocess.Popen:
        diary = (f"hydra.run.dir={tmp_path}/diary", f"hydra.sweep.dir={tmp_path}/diary")
        command = [sys.executable, HERE / "counted_run.py", tmp_path / "notes", *words, *diary]
        with open(tmp_path / f"log-{len(started)}", "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
        process.log = Path(log.name)
        started.append(process)
        return process

    yield typed
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(autouse=True)
def own_threads():
    """`threads=1` is for the whole process, which here is that of all tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def begun(tmp_path) -> list[str]:
    """The notes: a line "pid prompt" for every clip that was begun."""
    notes = tmp_path / "notes"
    return notes.read_text().splitlines() if notes.exists() else []


def killed(process, tmp_path, rng) -> bool:
    """SIGKILL at a random moment: mostly within a second of its next clips, else while it starts.

    Whether it was still alive.
    """
    if rng.random() < 0.85:
        clips, own = rng.choice([1, 2, 2]), f"{process.pid} "
        while sum(line.startswith(own) for line in begun(tmp_path)) < clips:
            if process.poll() is not None:
                break
            time.sleep(0.01)
    time.sleep(rng.uniform(0, 1.2))
    alive = process.poll() is None
    process.kill()
    process.wait()
    assert process.returncode in (-signal.SIGKILL, 0), process.log.read_text()
    return alive


def done_twice(notes: list[str]) -> list[str]:
    """Clips that were begun although a process had gone on to its next one after them."""
    lines = [tuple(line.split(" ", 1)) for line in notes]
    last = {pid: i for i, (pid, _) in enumerate(lines)}
    return [
        prompt
        for i, (pid, prompt) in enumerate(lines)
        if i < last[pid] and any(prompt == other for _, other in lines[i + 1 :])
    ]


def table(runs_dir):
    """The table of a store without times, and without what may differ from one minute to the next."""
    rows = load_records(runs_dir).sort_values(["prompt", "seed"]).reset_index(drop=True)
    times = [c for c in rows if c.startswith("seconds")]
    return rows.drop(columns=[*times, "low_flow_reused", "commit"])


@pytest.mark.parametrize(
    ("shards", "clips", "kills"),
    [(2, 4, (1, 1)), pytest.param(3, 60, (20, 20, 20), marks=pytest.mark.slow)],
)
def test_sigkill_wastes_a_clip_at_most(shards, clips, kills, start, tmp_path, monkeypatch):
    words = (*SMALL, "prompts=world", f"prompts.count={clips}")
    runs = tmp_path / "runs"

    def shard(k: int) -> list[bool]:
        rng = random.Random(f"seed 14, shard {k}")
        word = (f"shard={k}/{shards}", f"runs_dir={runs}")
        return [killed(start(*words, *word), tmp_path, rng) for _ in range(kills[k - 1])]

    with ThreadPoolExecutor(shards) as pool:
        alive = sum(sum(pool.map(shard, range(1, shards + 1)), []))
    before = len(load_records(runs))
    wasted = len(begun(tmp_path)) - before
    assert before > 0 and wasted <= alive
    assert not done_twice(begun(tmp_path))
    assert run_here(monkeypatch, tmp_path, *words, f"runs_dir={runs}") == 0
    records = [read_record(p) for p in runs.glob("*/records/[!.]*.json")]
    assert len(records) == clips and all(records)
    for record in records:
        video = runs / record["run_id"] / record["video"]
        assert sha256_of(video) == record["sha256"]
        assert read_frames(video).shape == (2, 64, 96, 3)
        assert "duplicates" not in record  # shards share nothing
    assert not list(runs.rglob(".tmp-*")) and not list(runs.glob("*/failures/*"))
    other = tmp_path / "undisturbed"
    assert run_here(monkeypatch, tmp_path, *words, f"runs_dir={other}") == 0
    assert_frame_equal(table(runs), table(other), check_exact=True)
    for record in records:
        twin = other / record["run_id"] / record["video"]
        assert sha256_of(twin) == record["sha256"]
    print(
        f"{sum(kills)} kills ({alive} of a running process), {before} of {clips} clips before "
        f"the clean pass, {len(begun(tmp_path))} begun, {wasted} wasted"
    )


def test_sigterm_drops_the_clip_in_flight_and_the_same_command_goes_on(
    start, tmp_path, monkeypatch
):
    """In the middle of the HR flow of a sweep's first job: 75, one line, no half file, LR kept."""
    runs = tmp_path / "runs"
    long = ("steps=12", "t_i=11", "frames=2", "device=cpu", "threads=1", "scorer=[none]")
    words = ("-m", "sparsity=0.25,0.5", *long, f"runs_dir={runs}")
    process = start(*words)
    while not list(runs.glob("lr_cache/[!.]*")):
        assert process.poll() is None, process.log.read_text()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    said = process.log.read_text()
    assert "Traceback" not in said
    (line,) = [x for x in said.splitlines() if x.startswith("stopped by SIGTERM: dropped ")]
    assert line.endswith("the same command goes on from here")
    assert not list(runs.rglob(".tmp-*")) and not list(runs.glob("*/failures/*"))
    assert len(list(runs.glob("*/recipe.json"))) == 1 and not len(load_records(runs))  # no 2nd job
    (flow,) = runs.glob("lr_cache/*")
    made = flow.stat().st_ino
    fast = [w.replace("sparsity=0.25,0.5", "sparsity=0.25") for w in words]
    assert run_here(monkeypatch, tmp_path, *fast) == 0
    (record,) = [read_record(p) for p in runs.glob("*/records/*.json")]
    assert record["low_flow_reused"] and flow.stat().st_ino == made
