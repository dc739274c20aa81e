"""LR flows on disk: bitwise what they were, bounded, and believed only when whole."""

import json
import os

import pytest
import torch
from finished import at_once
from safetensors.torch import load_file, save_file
from test_runner import config

from s2flow.cascade import Cascade
from s2flow.flow import Trajectory
from s2flow.process import loading
from s2flow.run import runner
from s2flow.store import lowflow
from s2flow.store.lowflow import LowFlow, LowFlowCache, low_key

GIB = 2**30


def flow(seed=0, clips=1, steps=3):
    """Random, of the right shapes."""
    torch.manual_seed(seed)
    z = [torch.randn(clips, 4, 2, 3, 5) for _ in range(steps + 1)]
    v = [None, *(torch.randn_like(x) for x in z[1:])]
    sigma = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return LowFlow(
        Trajectory(sigma, z, v), torch.rand(steps + 1, 2, clips, 3, 1, 2, 2), (1, 2, 2), 2.5
    )


def same(a, b):
    pairs = [(a.flow.sigma, b.flow.sigma), (a.coverage, b.coverage)]
    pairs += [*zip(a.flow.z, b.flow.z, strict=True), *zip(a.flow.v[1:], b.flow.v[1:], strict=True)]
    equal = all(torch.equal(x, y) and x.dtype == y.dtype for x, y in pairs)
    first = a.flow.v[0] is b.flow.v[0] is None
    return equal and first and (a.bricks, a.seconds) == (b.bricks, b.seconds)


def test_a_flow_comes_back_bitwise_in_another_process(tmp_path):
    low = flow()
    LowFlowCache(tmp_path, GIB).put("a clip", low)
    other = LowFlowCache(tmp_path, GIB)  # knows nothing but the folder
    assert same(other.get("a clip"), low) and other.get("another clip") is None
    assert LowFlowCache().get("a clip") is None  # and without the folder nothing


def test_clips_of_a_batch_and_back():
    low = flow(clips=3)
    parts = low.clips()
    assert len(parts) == 3 and all(p.seconds == pytest.approx(2.5 / 3) for p in parts)
    assert torch.equal(parts[1].coverage, low.coverage[:, :, 1:2])
    back = LowFlow.batch(parts)
    assert same(back, low) and LowFlow.batch(parts[:1]) is parts[0]


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5, -1])
def test_a_truncated_file_is_a_miss_said_once_and_written_anew(tmp_path, kept, capsys):
    low = flow()
    cache = LowFlowCache(tmp_path, GIB)
    cache.put("a clip", low)
    path = cache.path("a clip")
    whole = path.read_bytes()
    cut = int(kept * len(whole)) if isinstance(kept, float) else kept
    path.write_bytes(whole[:cut])
    fresh = LowFlowCache(tmp_path, GIB)
    assert fresh.get("a clip") is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "is not usable" in said and "computed again" in said
    fresh.put("a clip", low)
    assert same(LowFlowCache(tmp_path, GIB).get("a clip"), low)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "0"}, "it has format 0, not 1"),
        ({"of": "something"}, "it is the flow of something else"),
        (None, "it has format None"),
        ("bit", "its content was altered"),
    ],
)
def test_a_file_of_another_version_flow_or_content_is_a_miss(tmp_path, change, reason, capsys):
    cache = LowFlowCache(tmp_path, GIB)
    cache.put("a clip", flow())
    path = cache.path("a clip")
    if change == "bit":
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
    else:
        with lowflow.safe_open(path, "pt") as file:
            header = file.metadata()
        save_file(load_file(path), path, None if change is None else header | change)
    assert LowFlowCache(tmp_path, GIB).get("a clip") is None
    assert reason in capsys.readouterr().err


def test_the_folder_keeps_to_its_limit_and_forgets_what_was_not_used_longest(tmp_path):
    cache = LowFlowCache(tmp_path, GIB)
    cache.put("probe", flow())
    size = cache.path("probe").stat().st_size
    cache.path("probe").unlink()
    cache = LowFlowCache(tmp_path, 3 * size + 100, memory=0)
    for i, name in enumerate("abc"):
        cache.put(name, flow(i))
        os.utime(cache.path(name), ns=(i * 10**9, i * 10**9))
    LowFlowCache(tmp_path, GIB).get("a")  # used
    cache.put("d", flow(4))
    assert {n for n in "abcd" if cache.path(n).exists()} == {"a", "c", "d"}
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 3 * size + 100


def test_a_flow_over_the_limit_is_not_written_and_says_so(tmp_path, capsys):
    cache = LowFlowCache(tmp_path, 1000)
    cache.put("a clip", flow())
    assert not list(tmp_path.iterdir()) and cache.get("a clip") is not None  # still in memory
    assert "over lr_cache_gib" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    cache = LowFlowCache(tmp_path / "file", GIB)
    cache.put("a clip", flow())
    assert cache.get("a clip") is not None
    assert "not kept on disk" in capsys.readouterr().err

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lowflow, "save_file", full)
    cache = LowFlowCache(tmp_path / "folder", GIB)
    cache.put("a clip", flow())
    assert not list((tmp_path / "folder").iterdir())
    assert "No space left" in capsys.readouterr().err


def test_memory_keeps_to_its_limit():
    size = flow().nbytes()
    cache = LowFlowCache(memory=2 * size)
    for name in ("a", "b"):
        cache.put(name, flow())
    cache.get("a")
    cache.put("c", flow())
    assert [cache.get(n) is not None for n in "abc"] == [True, False, True]


def test_many_writers_of_one_flow(tmp_path):
    low = flow()  # once: threads share torch's generator
    at_once(*[lambda: LowFlowCache(tmp_path, GIB).put("a clip", low)] * 8)
    assert same(LowFlowCache(tmp_path, GIB).get("a clip"), low)
    assert len(list(tmp_path.iterdir())) == 1


# -- in a run -----------------------------------------------------------------------------------


LONGER = ("steps=5", "prompts.count=1", "scorer=[none]")


@pytest.mark.slow
def test_a_sweep_over_everything_of_the_hr_stage_costs_one_lr_run(tmp_path, monkeypatch):
    """4 sparsities x 3 orders x 4 t_i, each job as in a process of its own; and equal to no cache."""
    made, make = [], Cascade._make_low_flow
    monkeypatch.setattr(Cascade, "_make_low_flow", lambda self, i: made.append(i) or make(self, i))
    reused, seconds, runs = [], set(), {}
    for s in (1, 0.75, 0.5, 0.25):
        for order in (1, 2, 3):
            for t_i in (1, 2, 3, 4):
                loading._low_flows.cache_clear()  # another process: only the disk is shared
                words = (*LONGER, f"sparsity={s}", f"order={order}", f"t_i={t_i}")
                (record,) = runner.run(config(tmp_path / "a", *words))["records"]
                runs[record["run_id"]] = (words, record["sha256"])
                reused.append(record["low_flow_reused"])
                seconds.add(record["seconds"]["lr"])
    assert len(made) == 1 and len(runs) == 48 and len(seconds) == 1
    assert reused == [False] + [True] * 47
    assert len(list((tmp_path / "a" / "lr_cache").iterdir())) == 1
    for words, sha256 in list(runs.values())[::5]:
        loading._low_flows.cache_clear()
        (record,) = runner.run(config(tmp_path / "b", "lr_cache_gib=0", *words))["records"]
        assert record["sha256"] == sha256 and record["low_flow_reused"] is False
    assert not (tmp_path / "b" / "lr_cache").exists()


def test_where_the_cache_is_and_what_it_may_hold(tmp_path):
    cfg = config(tmp_path, f"lr_cache_dir={tmp_path}/here", "lr_cache_gib=0.5")
    cache = loading.low_flows(cfg)
    assert (cache.folder, cache.limit) == (tmp_path / "here", GIB // 2)
    assert loading.low_flows(config(tmp_path, "lr_cache_gib=0")).folder is None
    cfg.context_parallel = 2  # ranks must agree on what is there
    assert loading.low_flows(cfg).folder is None
    for value in ("-1", "inf", "nan"):
        with pytest.raises(ValueError, match="lr_cache_gib"):
            runner.run(config(tmp_path, f"lr_cache_gib={value}"))


def test_the_key_says_what_it_is_the_flow_of(recipe):
    r = recipe("method=cascade", "steps=4", "frames=2")
    version, of, clip = json.loads(low_key(r.low_identity(), "a cat", 3))
    assert clip == {"prompt": "a cat", "seed": 3} and json.loads(of)["weights"] == "test"
    assert version == 1
