"""The score book: a line is a verdict, nothing is lost, merging is copying files."""

import json
import os
import resource
import shutil
from functools import partial

import pytest
from finished import at_once

from s2flow.store.scorebook import ScoreBook, metric_hash, rows


def verdict(n=0, status="ok", at=None, metric="m", scorer="builtin", clip="sha", **scores):
    given = {"key": f"key{n}", "clip": clip, "scorer": scorer, "metric": metric}
    at = n if at is None else at
    return given | {"at": at, "status": status, "scores": scores or {"flicker": 0.5}}


def record(n=0, clip="sha", **own):
    return {"video": f"clips/key{n}.mp4", "sha256": clip, **own}


def files(folder):
    return sorted((folder / "scores").glob("*"))


def test_what_is_said_comes_back(tmp_path):
    book = ScoreBook(tmp_path)
    assert not book.of(record()) and not files(tmp_path)
    said = verdict(flicker=0.25, other=None)
    book.add(said)
    for reader in (book, ScoreBook(tmp_path)):
        assert reader.of(record()) == [said]
        assert not reader.of(record(1))  # the same bytes for another prompt
        assert not reader.of(record(clip="made anew"))
        assert reader.joined(record())["scores"] == {"flicker": 0.25, "other": None}


def test_a_torn_line_is_not_there_at_any_length(tmp_path):
    book = ScoreBook(tmp_path)
    book.add(verdict(0))
    book.add(verdict(1))
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        assert [v["key"] for v in ScoreBook(tmp_path).verdicts()] == ["key0"]
    ScoreBook(tmp_path).add(verdict(2))  # another process goes on in a file of its own
    (tmp_path / "scores" / "a.jsonl").write_bytes(b'[]\n{"key": 1}\n\xff\xfe\n\nnull\n')
    with pytest.raises(ValueError):
        ScoreBook(tmp_path).add(verdict(flicker=float("nan")))
    assert [v["key"] for v in ScoreBook(tmp_path).verdicts()] == ["key0", "key2"]


def test_two_machines_merge_by_copying(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for n, folder in enumerate((here, there)):
        ScoreBook(folder).add(verdict(n, at=n))
        ScoreBook(folder).add(verdict(n + 2, at=n + 2))
    shutil.copytree(there / "scores", here / "scores", dirs_exist_ok=True)
    assert [v["key"] for v in ScoreBook(here).verdicts()] == ["key0", "key1", "key2", "key3"]
    shutil.copytree(there / "scores", here / "scores", dirs_exist_ok=True)  # twice changes nothing
    assert len(ScoreBook(here).verdicts()) == 4


def test_many_writers(tmp_path):
    def write(n):
        book = ScoreBook(tmp_path)
        for i in range(20):
            book.add(verdict(100 * n + i))

    at_once(*(partial(write, n) for n in range(8)))
    assert len(ScoreBook(tmp_path).verdicts()) == 160 and len(files(tmp_path)) == 8


@pytest.mark.parametrize("left", [0, 7, None])
def test_a_full_disk_leaves_no_half_line(left, tmp_path, monkeypatch):
    """left: bytes that the file may grow by; None: the sync fails."""
    book = ScoreBook(tmp_path)
    book.add(verdict(0))
    (path,), limits = files(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        if left is None:
            patch.setattr(os, "fsync", lambda file: os.stat(tmp_path / "nowhere"))
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + left, limits[1]))
        try:
            with pytest.raises(OSError):
                book.add(verdict(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole and not book.of(record(1))
    book.add(verdict(2))
    assert [v["key"] for v in ScoreBook(tmp_path).verdicts()] == ["key0", "key2"]


def test_a_final_verdict_stands_and_the_last_of_several_counts(tmp_path):
    book = ScoreBook(tmp_path)
    book.add(verdict(status="failed", at=1, flicker=None))
    assert [v["status"] for v in book.of(record())] == ["failed"]
    book.add(verdict(at=2, flicker=0.1))
    book.add(verdict(status="failed", at=3, flicker=None))
    book.add(verdict(at=4, flicker=0.2))
    book.add(verdict(status="altered", at=5, flicker=None))
    for reader in (book, ScoreBook(tmp_path)):
        assert [v["scores"] for v in reader.of(record())] == [{"flicker": 0.2}]


def test_a_record_has_the_latest_metric_that_scored_of_each_scorer(tmp_path):
    book = ScoreBook(tmp_path)
    book.add(verdict(at=2, metric="A", flicker=0.2))
    book.add(verdict(at=1, metric="old", flicker=0.1))
    lost = {"status": "missing_weights", "flicker": None, "x": None}
    book.add(verdict(at=3, scorer="vbench", metric="v", **lost))
    book.add(verdict(at=4, metric="B", status="failed", flicker=None))
    joined = book.joined(record(prompt="a cat"))
    assert joined["prompt"] == "a cat" and joined["scores"] == {"flicker": 0.2, "x": None}
    assert joined["scorers"]["builtin"]["metric"] == "A"
    assert joined["scorers"]["vbench"]["status"] == "missing_weights"
    assert len(book.verdicts()) == 4
    book.add(verdict(at=5, metric="B", flicker=0.7))
    joined = book.joined(record())
    assert joined["scores"]["flicker"] == 0.7 and joined["scorers"]["builtin"]["metric"] == "B"


def test_a_clip_that_was_nan_has_no_scores(tmp_path):
    book = ScoreBook(tmp_path)
    book.add(verdict(flicker=1.0))  # of the black video in its place
    assert book.joined(record(outcome="nan"))["scores"] == {"flicker": None}
    assert book.joined(record(outcome="black"))["scores"] == {"flicker": 1.0}


def test_a_row_per_clip_dimension_and_metric(tmp_path):
    said = [verdict(0, a=0.1, b=None), verdict(1, metric="n", a=0.3) | {"arguments": {"x": 1}}]
    table = rows(said)
    assert list(table["dimension"]) == ["a", "b", "a"]
    assert list(table["key"]) == ["key0", "key0", "key1"]
    assert table["score"].isna().tolist() == [False, True, False]
    assert json.loads(table["arguments"][2]) == {"x": 1}


def test_metrics_are_named_by_what_they_are():
    known = {"arguments": {"reference": "abc"}, "version": 1, "weights": None}
    assert metric_hash("a", known) == metric_hash("a", dict(reversed(known.items())))
    others = [known | {"version": 2}, known | {"weights": "x"}, known | {"arguments": {}}]
    assert len({metric_hash("a", k) for k in (known, *others)} | {metric_hash("b", known)}) == 5
