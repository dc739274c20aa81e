"""Scoring finished clips: resumed after a kill, sharded, and no clip is ever dropped."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from finished import encoded, finished_run, record_clip
from hydra import compose, initialize_config_dir

from s2flow.errors import UserError
from s2flow.scorers import Scorer, Suite
from s2flow.scorers.score import Scoring, score
from s2flow.store import load_records, read_record, read_run
from s2flow.store.scorebook import ScoreBook
from s2flow.terminal.cli import literal

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "s2flow.score", "scorer=[builtin]")


def config(runs_dir, *overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("score", [f"runs_dir={runs_dir}", *map(literal, overrides)])


def verdicts(folder):
    """Prompt -> status."""
    return {v["prompt"]: v["status"] for v in ScoreBook(folder).verdicts()}


def lines(folder):
    return [
        json.loads(line)
        for path in (folder / "scores").glob("*.jsonl")
        for line in path.read_text().split("\n")[:-1]  # the last one may be on its way
    ]


class Half(Scorer):
    """Scores every clip .5, and counts how often it is asked."""

    names = ("half",)
    value = 0.5

    def __init__(self):
        self.asked = []

    def score(self, clip):
        self.asked.append(clip)
        return {"half": self.value}


@pytest.fixture
def half():
    return Half()


@pytest.fixture
def folder(tmp_path):
    """The folder of a run of one clip, "clip 0"."""
    return finished_run(tmp_path, 1, run_id="12345e6789")  # looks like a number


@pytest.fixture
def record(folder):
    return read_run(folder)[0]


def scoring(folder, scorer, **how):
    return Scoring(ScoreBook(folder), {"half": scorer}, {"half": {}}, **how)


def test_two_shards_killed_in_the_middle_and_resumed_say_what_one_straight_run_says(tmp_path):
    straight = finished_run(tmp_path / "straight", 200)
    score(config(tmp_path / "straight", "scorer=[builtin]"))
    folder = finished_run(tmp_path / "shards", 200)
    commands = [[*COMMAND, f"runs_dir={folder.parent}", f"shard={k}/2"] for k in (1, 2)]
    workers = [subprocess.Popen(c, cwd=ROOT, stdout=subprocess.DEVNULL) for c in commands]
    while len(lines(folder)) < 30 and any(w.poll() is None for w in workers):
        time.sleep(0.001)
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
    assert -signal.SIGKILL in [w.wait() for w in workers]
    assert 30 <= len(lines(folder)) < 200
    for k in (1, 2):
        score(config(folder.parent, "scorer=[builtin]", f"shard={k}/2"))

    def said(of):
        moment = ("at", "seconds", "commit")  # somebody may commit meanwhile
        kept = [{k: v for k, v in line.items() if k not in moment} for line in lines(of)]
        return sorted(map(json.dumps, kept))

    assert said(folder) == said(straight) and len(lines(folder)) == 200  # none twice


def test_shards_are_disjoint_complete_and_do_not_depend_on_what_else_is_there(tmp_path):
    few, many = finished_run(tmp_path / "few", 12), finished_run(tmp_path / "many", 24)
    shares = []
    for folder in (few, many):
        shares.append([])
        for k in (1, 2, 3):
            before = set(verdicts(folder))
            score(config(folder.parent, "scorer=[builtin]", f"shard={k}/3"))
            shares[-1].append(set(verdicts(folder)) - before)
        assert len(set.union(*shares[-1])) == sum(map(len, shares[-1])) == len(lines(folder))
        assert all(shares[-1])
    assert all(a <= b for a, b in zip(*shares, strict=True))


PROMPTS = (
    'it\'s "quoted" \\ with a backslash',
    "../../etc/passwd /slashes/ ..",
    "a fox 🦊 in the snow",
    "<script>alert(1)</script>",
    "long " * 80,
    "A Cat",
    "a cat",
)


def test_the_fault_list(tmp_path):
    folder = finished_run(tmp_path, [(p, 0) for p in PROMPTS])
    recipe = {"backbone": "micro", "method": "native", "high": [32, 48], "frames": 3}
    whole = encoded(kind=1)
    for name, data in {"zero": b"", "cut": whole[: len(whole) // 2], "text": b"no video"}.items():
        record_clip(folder, recipe, name, 0, data)  # recorded so: nothing but the file is wrong
    one = {**recipe, "frames": 1}
    record_clip(folder, one, "one frame", 0, encoded(1))
    record_clip(folder, recipe, "another size", 0, encoded(3, 64, 96))
    for name in ("truncated since", "gone"):
        record = record_clip(folder, recipe, name, 0, whole + name.encode())
        path = folder / record["video"]
        path.unlink() if name == "gone" else path.write_bytes(whole[:-9])
    with pytest.raises(
        UserError, match=r"of 14 verdicts 3 altered, 3 undecodable; .* holds which"
    ):
        score(config(tmp_path, "scorer=[builtin]"))
    found = verdicts(folder)
    assert len(found) == 14 and len(lines(folder)) == 14
    wrong = {"zero": "undecodable", "cut": "undecodable", "text": "undecodable"}
    wrong |= {"truncated since": "altered", "gone": "altered", "another size": "altered"}
    assert {p: s for p, s in found.items() if s != "ok"} == wrong
    assert set(PROMPTS) <= set(found)
    scores = {r["prompt"]: r["scores"] for r in read_run(folder)}
    assert scores["one frame"] == {"temporal_flickering": None}
    assert scores["A Cat"]["temporal_flickering"] != scores["a cat"]["temporal_flickering"]
    assert scores["zero"] == {"temporal_flickering": None}
    said = {v["prompt"]: v.get("error", "") for v in ScoreBook(folder).verdicts()}
    assert "cannot be decoded" in said["zero"] and "is gone" in said["gone"]
    assert "is not the file that was recorded" in said["truncated since"]
    assert "is 3 frames of 64x96, and its record has 3 frames of 32x48" in said["another size"]
    assert all("Traceback" not in e and "\n" not in e for e in said.values())
    with pytest.raises(UserError, match="3 altered, 3 undecodable"):  # asked again: still told
        score(config(tmp_path, "scorer=[builtin]"))
    assert len(lines(folder)) == 17  # only the altered ones, which may have been mended


def test_every_verdict_tells_how_it_was_computed_and_is_exported(tmp_path, folder):
    words = ("scorer=[builtin]", "runs=[12345e6789]", f"export={tmp_path}/x.csv")
    score(config(tmp_path, *words))
    (line,) = lines(folder)
    (record,) = map(read_record, (folder / "records").glob("*.json"))
    assert line["clip"] == record["sha256"] and line["run_id"] == folder.name
    assert (line["frames"], line["height"], line["width"], line["fps"]) == (3, 32, 48, 8)
    assert line["versions"]["torch"] and line["device"] and line["host"]
    for name in ("arguments", "version", "weights", "preprocessing", "protocol", "metric", "seed"):
        assert name in line
    assert load_records(tmp_path)["score_temporal_flickering"].between(0, 1).all()
    head, row = (tmp_path / "x.csv").read_text().splitlines()
    assert head.endswith("dimension,score") and line["metric"] in row


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs=[0123456780]"], "runs=0123456780: .* has no such run; it has 12345e6789"),
        (["shard=0/2"], "shard=0/2 is not valid"),
        (["runs_dir=nowhere"], "runs_dir=nowhere holds no runs; type runs_dir="),
        (["export=nowhere/x.csv"], "export=nowhere/x.csv cannot be written"),
        (["scorer=[fidelity]"], "scorer.fidelity.reference is not set"),
        *((["threads=" + n], f"threads={n} is not in 1..1024") for n in ("0", "-1", "1025")),
    ],
)
def test_bad_words(words, said, tmp_path, folder):
    with pytest.raises(UserError, match=said):
        score(config(tmp_path, "scorer=[builtin]", *words))


def test_world_is_left_out_where_the_backbone_has_none(tmp_path, folder, record, capsys):
    record["recipe"]["backbone"] = "wan_1_3b"
    next((folder / "records").glob("*.json")).write_text(json.dumps(record))
    score(config(tmp_path, "scorer=[builtin,world]"))
    assert {v["scorer"] for v in lines(folder)} == {"builtin"}
    assert "no world of size 'wan_1_3b'" in capsys.readouterr().err


def test_a_clip_is_asked_about_once(tmp_path, half):
    folder = finished_run(tmp_path, 2)
    records = read_run(folder)
    for _ in range(2):
        first = scoring(folder, half)
        assert all(first.score(r) for r in records)
    assert len(half.asked) == 2
    half.version = 2  # another definition is another metric
    assert scoring(folder, half).missing(records[0]) == ["half"]


def test_where_it_computes_is_not_what_it_measures(folder, half):
    book = ScoreBook(folder)
    arguments = [{"device": "cpu"}, {"device": "cuda", "cache_dir": "x"}, {"reference": "abc"}]
    metrics = [Scoring(book, {"half": half}, {"half": a}).metric["half"] for a in arguments]
    assert metrics[0] == metrics[1] != metrics[2]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_null_and_said(value, folder, record, half):
    half.value = value
    assert not scoring(folder, half).score(record)
    (said,) = lines(folder)
    assert said["status"] == "nan" and said["scores"] == {"half": None}
    assert scoring(folder, half).missing(record) == []
    assert scoring(folder, half, retry=True).missing(record) == ["half"]


def test_a_scorer_that_fails_is_asked_again_and_keeps_its_traceback(
    folder, record, half, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(Half, "score", lambda self, clip: 1 / 0)
        assert not scoring(folder, half).score(record)
    (line,) = lines(folder)
    assert line["status"] == "failed" and "ZeroDivisionError: division" in line["error"]
    assert "Traceback" in line["error"] and line["scores"] == {"half": None}
    assert scoring(folder, half).score(record) and len(half.asked) == 1
    assert read_run(folder)[0]["scores"] == {"half": 0.5}


@pytest.mark.parametrize("later", [{"file": "abc"}, None])
def test_missing_weights_are_null_until_weights_or_package_arrive(later, folder, record, half):
    half.needs, half.weights = ["clip/ViT-B-32.pt"], None
    assert scoring(folder, half).score(record) and not half.asked
    assert lines(folder)[0]["status"] == "missing_weights"
    assert lines(folder)[0]["missing"] == ["clip/ViT-B-32.pt"]
    assert scoring(folder, half).missing(record) == []
    half.needs, half.weights = [], later
    assert scoring(folder, half).missing(record) == ["half"]
    assert scoring(folder, half).score(record)
    assert read_run(folder)[0]["scores"] == {"half": 0.5}


def test_parts_are_scored_on_their_own(folder, record, half):
    class Both(Suite):
        prepared = 0

        def prepare(self):
            Both.prepared += 1

        def parts(self):
            other = Half()
            other.names = ("other",)  # and answers "half": its own failure
            return {"half": half, "other": other}

    both = Scoring(ScoreBook(folder), {"both": Both()}, {"both": {"x": 1}})
    assert both.score(record) is False and Both.prepared == 1
    assert Counter(v["status"] for v in lines(folder)) == {"ok": 1, "failed": 1}
    assert both.missing(record) == ["other"]


def test_a_scorer_sees_the_clip_the_record_and_the_lr_clip(tmp_path, folder, record, half):
    (folder / record["video"]).with_suffix(".low.mp4").write_bytes(encoded(3, 16, 24))
    scoring(folder, half).score(record)
    (clip,) = half.asked
    assert clip.video.shape == (3, 32, 48, 3) and clip.low.shape == (3, 16, 24, 3)
    assert clip.prompt == "clip 0" and clip.record["video"] == record["video"]
    assert clip.runs_dir == tmp_path


def test_what_a_score_depends_on_beside_the_clip_makes_it_stale(folder, record, half):
    half.reference = "abc"
    half.depends = lambda clip: [half.reference]
    assert scoring(folder, half).score(record) and scoring(folder, half).missing(record) == []
    half.reference = "made anew"
    assert scoring(folder, half).missing(record) == ["half"]
    assert scoring(folder, half).score(record) and len(half.asked) == 2
    assert scoring(folder, half).missing(record) == []
