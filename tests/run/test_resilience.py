"""What a run survives by itself: failures before, memory that runs out, signals, other workers."""

import json
import os
import signal

import pytest
import torch
from finished import composed, state
from test_cli import run_here

from s2flow import methods
from s2flow.errors import UserError
from s2flow.process import loading, memory, stopping
from s2flow.prompts import DEMO
from s2flow.run import job, runner
from s2flow.store import Store, clip_key, read_record, sha256_of, write_json
from s2flow.store.lowflow import LowFlowCache

SMALL = ("steps=3", "t_i=2", "frames=2", "device=cpu", "method=bicubic", "scorer=[none]")


def config(runs_dir, *overrides):
    return composed(*SMALL, f"runs_dir={runs_dir}", *overrides)


@pytest.fixture
def failing(monkeypatch):
    """failing(error, when): methods.generate raises it where `when(prompts)`; the calls are listed."""
    generate, calls = methods.generate, []

    def fail(error, when=lambda prompts: True):
        def broken(backbone, recipe, prompts, seeds, **how):
            calls.append(list(prompts))
            if when(prompts):
                with how["clock"]("hr"):
                    raise error
            return generate(backbone, recipe, prompts, seeds, **how)

        monkeypatch.setattr(methods, "generate", broken)
        return calls

    fail.heal = lambda: monkeypatch.setattr(methods, "generate", generate)
    return fail


# -- cache= -------------------------------------------------------------------------------------


def test_failures_are_counted_and_tried_again_only_on_demand(failing, tmp_path):
    calls = failing(RuntimeError("deliberate"), lambda prompts: DEMO[1] in prompts)
    words = ("prompts.count=2",)
    for cache in ("cached", "retry"):
        with pytest.raises(UserError, match="1 of 2 clips failed, 1 are complete.*cache=retry"):
            runner.run(config(tmp_path, *words, f"cache={cache}"))
    (path,) = tmp_path.glob("*/failures/*.json")
    failure = json.loads(path.read_text())
    assert failure["tries"] == 2 == len(failure["tried_at"]) and failure["stage"] == "hr"
    assert failure["tried_at"][0] < failure["tried_at"][1]
    assert "deliberate" in failure["traceback"]

    calls.clear()
    with pytest.raises(UserError) as said:
        runner.run(config(tmp_path, *words))
    assert not calls  # what failed before is not tried
    assert "1 of 2 clips failed before" in str(said.value) and DEMO[1] in str(said.value)
    assert "type cache=retry" in str(said.value) and "\n" not in str(said.value)
    failing.heal()
    assert runner.run(config(tmp_path, *words, "cache=retry"))["made"] == 1
    assert not path.exists() and runner.run(config(tmp_path, *words))["made"] == 0


def test_what_is_no_clips_fault_leaves_no_failure(failing, tmp_path):
    failing(UserError("attention=fa4 cannot be used; type attention=auto"))
    with pytest.raises(UserError, match="^attention=fa4 cannot be used; type attention=auto$"):
        runner.run(config(tmp_path, "prompts.count=2", "batch=2"))
    assert not list(tmp_path.glob("*/failures/*"))


def test_force_makes_everything_again_and_loses_nothing_if_it_fails(failing, tmp_path):
    words = ("prompts.count=2",)
    runner.run(config(tmp_path, *words))
    before = state(tmp_path)
    failing(RuntimeError("deliberate"))
    with pytest.raises(UserError, match="2 of 2 clips failed"):
        runner.run(config(tmp_path, *words, "cache=force"))
    assert before.items() <= state(tmp_path).items()
    failing.heal()
    summary = runner.run(config(tmp_path, *words, "cache=force"))
    assert summary["made"] == 2 and not list(tmp_path.glob("*/failures/*"))
    after = state(tmp_path)
    for name in (k for k in before if "/records/" in k or "/clips/" in k):
        assert after[name][0] > before[name][0], name
    assert not any("duplicates" in r for r in summary["records"])


def test_a_forced_clip_that_is_killed_while_it_takes_its_place(tmp_path, monkeypatch):
    """At every rename in turn: the store has the old clip or the new one after the next start."""
    cfg = config(tmp_path, "prompt=cat")
    (old,) = runner.run(cfg)["records"]
    replace, folder = os.replace, next(tmp_path.glob("*/records")).parent
    write = job.write_video

    def longer(path, video, fps):  # other bytes than before
        write(path, video, fps)
        path.write_bytes(path.read_bytes() + b"\0\0\0\x0cfree" + os.urandom(4))

    class Killed(BaseException):
        pass

    monkeypatch.setattr(job, "write_video", longer)
    cfg.cache = "force"
    kept, names = set(), ("clips/", "low.mp4", "sheets/", "records/")
    for name in names:

        def killed(source, target, name=name):
            if name in str(target):
                # a killed process cleans nothing up: what `finally` removes is put back
                killed.left = {p: p.read_bytes() for p in folder.rglob(".tmp-*")}
                raise Killed
            replace(source, target)

        monkeypatch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            runner.run(cfg)
        monkeypatch.setattr(os, "replace", replace)
        for path, data in killed.left.items():  # of another process, that is no more
            pid = path.name.split(f"-{os.getpid()}-")
            path.with_name(f"-{2**22 + 1}-".join(pid)).write_bytes(data)
        store = Store(tmp_path, folder.name, {})
        (path,) = folder.glob("records/[!.]*.json")
        assert store.matches(path.stem) and store.record(path.stem) is not None, name
        kept.add((name, store.record(path.stem)["sha256"] == old["sha256"]))
        assert not list(folder.rglob(".tmp-*"))
        old = store.record(path.stem)
    assert kept == {("clips/", True), ("low.mp4", True), ("sheets/", True), ("records/", False)}


def test_read_only_writes_nothing_and_says_what_is_missing(tmp_path, capsys, monkeypatch):
    runs = tmp_path / "runs"
    assert run_here(monkeypatch, tmp_path, "prompts.count=1", *SMALL) == 0
    before = state(runs, but=None)
    monkeypatch.setattr(loading, "load_backbone", None)
    capsys.readouterr()
    words = ("prompts.count=2", "cache=read-only", *(w for w in SMALL if "scorer" not in w))
    assert run_here(monkeypatch, tmp_path, *words) == 2
    shown = capsys.readouterr()
    assert "1/2" in shown.out
    (line,) = shown.err.splitlines()
    assert "1 of 2 clips are not in" in line and "cache=read-only makes none" in line
    command = line.partition("type ")[2]
    assert command.startswith("python run.py ") and "prompts.count=2" in command
    assert "cache=" not in command
    assert state(runs, but=None) == before
    assert run_here(monkeypatch, tmp_path, *words[1:], "prompts.count=1") == 0
    assert state(runs, but=None) == before
    assert run_here(monkeypatch, tmp_path, *words, f"runs_dir={tmp_path}/none") == 2
    assert not (tmp_path / "none").exists()


# -- out of memory ------------------------------------------------------------------------------


def test_how_memory_that_ran_out_shows():
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] CPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
    ):
        assert memory.ran_out(error)
    assert not memory.ran_out(RuntimeError("shape mismatch")) and not memory.ran_out(OSError())


def test_a_clip_that_ran_out_of_memory_is_tried_once_with_less(
    failing, tmp_path, monkeypatch, capsys
):
    """As on a GPU, with offload=group on the CPU; the following clips keep to it."""
    monkeypatch.setattr(memory, "offloads", lambda device: True)
    flows = LowFlowCache()
    monkeypatch.setattr(loading, "low_flows", lambda cfg: flows)
    plain = runner.run(config(tmp_path / "plain", "prompts.count=3"))["records"]
    flows.memory = 2**30
    loaded, load = [], loading.load_backbone

    def noted(*a):
        loaded.append(a[2])
        return load(a[0], "cpu", *a[2:])

    monkeypatch.setattr(loading, "load_backbone", noted)
    first = iter([True])
    calls = failing(
        torch.OutOfMemoryError("CUDA out of memory"),
        lambda prompts: DEMO[1] in prompts and next(first, False),
    )
    records = runner.run(config(tmp_path / "runs", "prompts.count=3"))["records"]
    assert [c[0] for c in calls] == [DEMO[0], DEMO[1], DEMO[1], DEMO[2]]
    saving = {"offload": "group", "low_flows": "on disk only", "after": "out of memory in hr"}
    assert [r.get("saving") for r in records] == [None, saving, saving]
    assert [r["offload"] for r in records] == ["none", "group", "group"]
    assert "group" in loaded and flows.memory == 0
    assert [r["sha256"] for r in records] == [r["sha256"] for r in plain]  # no pixel has changed
    said = capsys.readouterr().err
    assert "note: out of memory in hr; tried once more with offload=group" in said
    loading._loaded.clear()


def test_a_batch_that_ran_out_of_memory_is_taken_apart_first(failing, tmp_path):
    calls = failing(MemoryError(), lambda prompts: len(prompts) > 1)
    records = runner.run(config(tmp_path, "prompts.count=2", "batch=2"))["records"]
    assert [len(c) for c in calls] == [2, 1, 1]
    assert [r["batch"] for r in records] == [1, 1] and not any("saving" in r for r in records)


def test_memory_that_runs_out_twice_is_a_failure_that_says_what_to_type(failing, tmp_path, capsys):
    calls = failing(MemoryError("no"), lambda prompts: DEMO[0] in prompts)
    with pytest.raises(UserError, match="1 of 2 clips failed, 1 are complete"):
        runner.run(config(tmp_path, "prompts.count=2"))
    assert [c[0] for c in calls] == [DEMO[0], DEMO[0], DEMO[1]]
    line = next(x for x in capsys.readouterr().err.splitlines() if "FAILED" in x)
    assert "out of memory again: type a smaller low=" in line and "context_parallel=2" in line
    (path,) = tmp_path.glob("*/failures/*.json")
    assert json.loads(path.read_text())["saving"]["after"] == "out of memory in hr"
    words = memory.advice(config(tmp_path, "backbone=wan_14b", "vae_tile=null"))
    assert words.startswith("type ") and "context_parallel=2" in words


# -- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "flows"), [(7, 1), (8, 2)])
def test_a_clip_is_dropped_at_its_next_step_and_one_that_is_done_is_not(
    steps, flows, tmp_path, monkeypatch
):
    """3 LR and 2 HR steps of the first clip, then 2 or all 3 LR steps of the second: it is kept."""
    own = LowFlowCache()
    monkeypatch.setattr(loading, "low_flows", lambda cfg: own)
    cfg = config(tmp_path, "prompts.count=3", "method=cascade")
    taken, commit = [], job.Job.commit

    def one_step(self, progress):
        def told(stage, done, total):
            taken.append((stage, done))
            if len(taken) == steps:
                os.kill(os.getpid(), signal.SIGUSR1)
            step(self, progress)(stage, done, total)

        return told

    step = job.Job.step
    monkeypatch.setattr(job.Job, "step", one_step)
    with stopping.caught(working=True), pytest.raises(stopping.Preempted) as stop:
        runner.run(cfg)
    assert stop.value.by == "SIGUSR1" and stop.value.dropped == (DEMO[1],)
    assert len(taken) == steps and len(own._held) == flows and not stopping.asked()
    assert not list(tmp_path.rglob(".tmp-*")) and not list(tmp_path.glob("*/failures/*"))

    def late(self, *rest):  # while the second clip is written
        os.kill(os.getpid(), signal.SIGTERM)
        commit(self, *rest)

    monkeypatch.setattr(job.Job, "step", step)
    monkeypatch.setattr(job.Job, "commit", late)
    with stopping.caught(working=True), pytest.raises(stopping.Preempted) as stop:
        runner.run(cfg)
    assert stop.value.dropped == () and len(list(tmp_path.glob("*/records/*"))) == 2
    monkeypatch.setattr(job.Job, "commit", commit)
    assert runner.run(cfg)["made"] == 1


def test_handlers_are_taken_only_where_nobody_else_has_one_and_given_back():
    own = lambda number, frame: None  # noqa: E731
    before = {s: signal.getsignal(s) for s in stopping.SIGNALS}
    assert set(before.values()) == {signal.SIG_DFL}
    signal.signal(signal.SIGUSR2, own)  # submitit's
    try:
        with stopping.caught():
            assert signal.getsignal(signal.SIGUSR2) is own
            assert signal.getsignal(signal.SIGTERM) is stopping._handle
        assert signal.getsignal(signal.SIGUSR2) is own
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)


def test_a_second_signal_stops_at_once_and_an_echo_does_not(monkeypatch):
    clock = iter([0.0, 0.5, 2.0])
    monkeypatch.setattr(stopping.time, "monotonic", lambda: next(clock))
    with stopping.caught(working=True):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # torchrun passes on what its children got
        with pytest.raises(stopping.Preempted):
            stopping.check()
        with pytest.raises(stopping.Preempted) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.value.at_once


def test_between_jobs_a_signal_stops_the_sweep():
    with stopping.caught():  # run.py
        with stopping.caught(working=True):  # a job, in which the signal comes too late to matter
            os.kill(os.getpid(), signal.SIGUSR2)
        with pytest.raises(stopping.Preempted), stopping.caught(working=True):
            raise AssertionError("the next job has begun")
    with stopping.caught(), pytest.raises(stopping.Preempted):
        os.kill(os.getpid(), signal.SIGTERM)  # where no job is at work


# -- other workers ------------------------------------------------------------------------------


def test_a_clip_that_somebody_else_has_recorded_meanwhile_is_a_duplicate(
    tmp_path, monkeypatch, capsys
):
    cfg, generate, depth = config(tmp_path, "prompt=cat"), methods.generate, []

    def slow(*args, **how):
        made = generate(*args, **how)
        depth.append(1)
        if len(depth) < 3:
            runner.run(cfg)
        return made

    monkeypatch.setattr(methods, "generate", slow)
    (record,) = runner.run(cfg)["records"]
    assert record["duplicates"] == 2  # three workers made it
    assert "2 duplicate(s)" in capsys.readouterr().out
    store = Store(tmp_path, record["run_id"], {})
    assert store.matches(clip_key("cat", 0))


def test_two_workers_that_finish_at_once_leave_a_clip_and_its_own_record(tmp_path, monkeypatch):
    """The other's mp4 takes its place between our mp4 and our record."""
    cfg = config(tmp_path, "prompt=cat")
    store_commit, theirs = Store.commit, [b"theirs"]

    def between(self, key, record, files=None, replaces=None):
        files.close()
        if theirs:
            self.path("clips", f"{key}.mp4").write_bytes(theirs.pop())
        store_commit(self, key, record, None, replaces)

    monkeypatch.setattr(Store, "commit", between)
    (record,) = runner.run(cfg)["records"]
    path = tmp_path / record["run_id"] / record["video"]
    assert sha256_of(path) == record["sha256"] and path.read_bytes() != b"theirs"


def test_half_written_lr_flows_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path):
    cache, left = tmp_path / "lr_cache", f"abcdef01-{'0' * 24}.safetensors"
    cache.mkdir()
    host = f".tmp-{os.uname().nodename}"
    dead, alive = (cache / f"{host}-{pid}-{left}" for pid in (2**22 + 1, os.getpid()))
    for path in (dead, alive, other := cache / f".tmp-elsewhere-7-{left}"):
        path.touch()
    runner.run(config(tmp_path, "prompt=cat"))
    assert not dead.exists() and alive.exists() and other.exists()


def test_a_dead_writers_record_is_promoted_only_if_its_video_is_there(tmp_path):
    store = Store(tmp_path, "0123456789", {})
    dead = f".tmp-{os.uname().nodename}-{2**22 + 1}-abcdef01-"
    for key, there in (("a" * 16, True), ("b" * 16, False)):
        store.path("clips", f"{key}.mp4").write_bytes(b"video")
        record = {"status": "ok", "video": f"clips/{key}.mp4", "bytes": 5, "at": 1.0}
        record |= {"run_id": "0123456789", "recipe": {}, "prompt": "a", "seed": 0, "seconds": {}}
        record["sha256"] = sha256_of(store.path("clips", f"{key}.mp4")) if there else "other"
        write_json(store.path("records", f"{dead}{key}.json"), record)
    Store(tmp_path, "0123456789", {})
    assert [p.name for p in (store.folder / "records").iterdir()] == [f"{'a' * 16}.json"]
    assert read_record(store.path("records", f"{'a' * 16}.json"))["at"] == 1.0
