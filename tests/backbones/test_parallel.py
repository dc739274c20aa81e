"""Several processes: a video over two ranks is the video of one, and prompts are shared."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import two_ranks
from finished import fresh_flows
from test_cli import run_here
from tiny_pipelines import relative

from s2flow.backbones.ulysses import check_heads, deal_heads
from s2flow.errors import UserError
from s2flow.process import loading, parallel
from s2flow.process.parallel import Team

ROOT = Path(__file__).parents[2]


LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def torchrun(*words):
    """Two processes; returns what they said."""
    done = subprocess.run([*LAUNCH, *map(str, words)], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def launch(folders, tmp_path_factory):
    """What two ranks said and found, of all that two_ranks.py computes, and their folder."""
    out = tmp_path_factory.mktemp("ranks")
    said = torchrun(two_ranks.__file__, out, *(f"{k}={v}" for k, v in folders.items()))
    found = [torch.load(out / f"{r}.pt", weights_only=False) for r in range(2)]
    return SimpleNamespace(said=said, found=found, out=out)


@pytest.fixture(scope="module")
def ranks(launch):
    """What each of two ranks found."""
    return launch.found


def flat(nest, above=()):
    """{(key, key, ...): value} of dicts in dicts."""
    if not isinstance(nest, dict):
        return {above: nest}
    return {k: v for name, x in nest.items() for k, v in flat(x, (*above, name)).items()}


def test_windows_decided_inside_the_forward_are_those_of_one_process(folders, ranks):
    """Each rank sees its own heads; boxes, densities and regret are of all of them."""
    alone = two_ranks.online(str(folders["hunyuan"]))
    for name, (latent, reports) in alone.items():
        for mine, said in (found["online"][name] for found in ranks):
            assert relative(mine, latent) < 1e-4, name
            for one, other in zip(said, reports, strict=True):
                assert one["density"] == pytest.approx(other["density"]), name
                assert one.get("window_histogram") == other.get("window_histogram"), name
                if name == "oracle":
                    assert flat(one["oracle"]) == pytest.approx(flat(other["oracle"]), abs=1e-5)


@pytest.mark.parametrize("name", list(two_ranks.FAMILIES))
def test_two_ranks_make_the_video_of_one(name, folders, ranks):
    """Coverage, plan and video, in windows that differ between heads; joint text of two lengths."""
    alone = two_ranks.clip(name, str(folders[name]))
    volumes = alone["boxes"][1:3].float().prod(-1).sum(2)  # over the batch
    assert (volumes[..., 0] != volumes[..., 1]).any()
    if name != "wan_2_2_14b":  # whose second head's window is never the larger one
        assert (volumes[..., 0] < volumes[..., 1]).any()  # dealing changes the order of heads
    for mine in (found[name] for found in ranks):
        assert relative(mine["coverage"], alone["coverage"]) < 1e-5
        assert torch.equal(mine["boxes"], alone["boxes"])
        assert relative(mine["latent"], alone["latent"]) < 1e-5
        assert float((mine["video"] - alone["video"]).abs().max()) < 1e-5
        assert relative(mine["odd"], alone["odd"]) < 1e-5
        assert relative(mine["ordered"], alone["odd"]) < 1e-5  # in brick order inside
        assert {h for h, _ in mine["heads"]} == {1} and {h for h, _ in alone["heads"]} == {2}
        assert [n for _, n in mine["heads"]] == [n for _, n in alone["heads"]]


def test_heads_dealt_unevenly_come_back_in_order(ranks):
    truth = two_ranks.exchange()
    for found, tokens in zip(ranks, (range(4), range(4, 7)), strict=True):
        expected = truth[:, [*tokens, 7, 8, 9]]
        assert relative(found["exchange"], expected) < 1e-6


def test_a_leader_speaks_for_its_group(ranks):
    assert ranks[0]["failures"] == ("OSError('disk')", 0, ["a", "b"], [2, 1])
    said, *rest = ranks[1]["failures"]
    assert "leader of this group failed: OSError('disk')" in said
    assert rest == [0, ["a", "b"], [2, 1]]


def test_sharing_and_compiling_go_together(folders, ranks):
    truth = two_ranks.compiled(str(folders["wan_2_2_14b"]))
    assert relative(truth[:1], truth[1:]) > 1e-2  # two experts
    assert all(relative(found["compiled"], truth) < 1e-5 for found in ranks)


def test_a_rank_that_fails_alone_says_so(ranks):
    """It must not wait for the others, who wait for it."""
    assert "rank 0 failed alone (ValueError: only here)" in ranks[0]["alone"]


def test_heads_are_dealt_by_their_work():
    assert deal_heads([8, 1, 1, 8, 1, 1], 2) == [[0, 1, 4], [2, 3, 5]]
    assert deal_heads([5, 1, 1, 1], 2) == [[0, 3], [1, 2]]


# -- what cannot be shared ---------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch):
    """launched(rank, size): as if torchrun had started so many processes on one machine."""

    def pretend(rank, size):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "localhost"}
        for name, value in names.items():
            monkeypatch.setenv(name, str(value))

    return pretend


def test_heads_that_cannot_be_shared_are_refused():
    with pytest.raises(UserError, match=r"context_parallel=8 .* 12 heads .*=2\|3\|4\|6\|12 "):
        check_heads(12, 8)
    check_heads(24, 8)


def test_processes_must_fit_the_groups(launched):
    with pytest.raises(UserError, match="2 needs .* there is 1; type torchrun --nproc_per_node=2"):
        parallel.join(2, "cpu")
    launched(0, 6)
    with pytest.raises(UserError, match="4 needs a multiple of 4 processes and there are 6"):
        parallel.join(4, "cpu")


def test_each_process_has_its_own_card(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert loading.device_here("cuda:1") == "cuda:1" and loading.device_here("auto") == "cuda"
    launched(3, 8)
    assert loading.device_here("auto") == loading.device_here("cuda") == "cuda:3"
    assert loading.device_here("cpu") == "cpu"
    with pytest.raises(UserError, match="every process on one card; type device=cuda"):
        loading.device_here("cuda:1")
    launched(4, 8)
    with pytest.raises(UserError, match="no card, there are 4; type --nproc_per_node=4"):
        loading.device_here("auto")


@pytest.mark.parametrize("size, k", [(8, 1), (8, 4), (6, 2)])
def test_every_clip_is_made_by_one_group(size, k):
    shares = [Team(rank, size, k).share(list(range(11))) for rank in range(size)]
    assert all(shares[r] == shares[r // k * k] for r in range(size))
    assert sorted(t for s in shares[::k] for t in s) == list(range(11))
    assert [Team(r, size, k).leads for r in range(size)] == [r % k == 0 for r in range(size)]


# -- the command line -------------------------------------------------------------------------


def records(runs_dir):
    found = [json.loads(p.read_text()) for p in sorted(runs_dir.glob("*/records/*.json"))]
    placement = {"seconds", "step_seconds", "at", "sweep", "peak_mib", "command", "threads"}
    placement |= {"commit", "dirty", "context_parallel", "sha256", "bytes"}  # or by the commit
    return [{k: v for k, v in r.items() if k not in placement} for r in found]


def coarse(value):
    """With numbers to within 1e-3: two ranks add up in another order."""
    if isinstance(value, dict):
        return {k: coarse(v) for k, v in value.items()}
    if isinstance(value, list):
        return [coarse(v) for v in value]
    return pytest.approx(value, abs=1e-3) if isinstance(value, float) else value


def test_run_py_shares_prompts_and_videos(launch, folders, tmp_path, monkeypatch):
    """One sweep on two processes: 3 prompts over both, then each video over both."""
    said = launch.said
    assert said.stdout.count("sweep") == 1 and "3/3" in said.stdout  # rank 0 prints the table
    assert "rank 0 of 2" in said.stderr and "rank 1 of 2" in said.stderr
    monkeypatch.setattr(loading, "low_flows", fresh_flows())  # other tests made the same clips
    assert run_here(monkeypatch, tmp_path, *two_ranks.typed(folders["wan"], tmp_path)) == 0
    assert len(records(tmp_path)) == 3
    for shared in ("1", "2"):
        for found, expected in zip(records(launch.out / shared), records(tmp_path), strict=True):
            assert found.keys() == expected.keys()
            assert [k for k in found if found[k] != coarse(expected[k])] == []


@pytest.mark.slow
def test_a_group_that_is_told_to_stop_leaves_together_and_goes_on(folders, tmp_path):
    """torchrun hands SIGTERM on; the ranks drop the clip at the same step, none waits for another."""
    runs, log = tmp_path / "runs", tmp_path / "log"
    long = [*two_ranks.typed(folders["wan"], runs), "context_parallel=2", "steps=60", "t_i=50"]
    long += [f"hydra.run.dir={tmp_path}/diary", "scorer=[none]"]
    with open(log, "w") as file:
        typed = [*LAUNCH, ROOT / "run.py", *long]
        process = subprocess.Popen(typed, env=ENV, stdout=file, stderr=file)
        while not list(runs.glob("*/records/[!.]*")):  # the second clip is on its way
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(25) != 0  # torchrun kills those that wait after 30 seconds
    said = log.read_text()
    assert "stopped by SIGTERM: dropped " in said, said
    assert len(records(runs)) == 1
    assert not list(runs.rglob(".tmp-*")) and not list(runs.glob("*/failures/*"))
    before = {p: p.stat().st_ino for p in runs.glob("*/records/*")}
    torchrun(ROOT / "run.py", *long)
    assert len(records(runs)) == 3 and all(p.stat().st_ino == i for p, i in before.items())
