"""The index is never the truth: with it, without it, or with a broken one, the same comes out."""

import json
import os
import socket

import pandas as pd
import pytest
from finished import at_once, finished_run, record_clip

from s2flow.scorers import Scorer
from s2flow.scorers.score import Scoring
from s2flow.store import Store, clip_key, index, load_records, read_record, rows, write_json
from s2flow.store.index import NAME
from s2flow.store.scorebook import ScoreBook


@pytest.fixture
def small(monkeypatch):
    """Every run is given an index."""
    monkeypatch.setattr(index, "MIN_RECORDS", 1)
    monkeypatch.setattr(index, "CHUNK", 2)  # several parts, too


@pytest.fixture
def runs(tmp_path, small):
    """Two runs, of another shape of record each."""
    finished_run(tmp_path / "runs", [("a cat", 0), ("a 🦊\u2028 \n", 1), ("", -2)], "0000000001")
    folder = finished_run(tmp_path / "runs", 2, "0000000002", method="s2flow")
    edit(folder, 0, density={"2": 0.5, "1": 0.25}, outcome="nan", scores={"old": 0.5}, at=5.0)
    edit(folder, 1, seconds={"lr": 1, "hr": 2.5}, low_flow_reused=True, original_prompt=None)
    return tmp_path / "runs"


def edit(folder, i, **changed):
    path = sorted((folder / "records").glob("*.json"))[i]
    write_json(path, json.loads(path.read_text()) | changed)
    return path


def said(record, at=1.0, **scores):
    known = {"key": record["video"][6:-4], "clip": record["sha256"], "scorer": "builtin", "at": at}
    return known | {"metric": f"m{at}", "status": "ok", "scores": scores, "arguments": {"a": 1}}


def store_of(runs, run_id="0000000001"):
    return Store(runs, run_id, json.loads((runs / run_id / "recipe.json").read_text()))


def same(runs):
    """What is read with the index, checked against what is read without."""
    with_it = load_records(runs)
    kept = {p: p.read_bytes() for p in runs.glob(f"*/{NAME}")}
    for path in kept:
        path.unlink()
    pd.testing.assert_frame_equal(with_it, load_records(runs))
    for path, data in kept.items():
        path.write_bytes(data)
    return with_it


def test_the_second_look_parses_nothing(runs, monkeypatch):
    first = load_records(runs)
    assert len(first) == 5 and len(list(runs.glob(f"*/{NAME}"))) == 2
    monkeypatch.setattr(index, "read_record", None)
    monkeypatch.setattr(index, "ScoreBook", None)
    pd.testing.assert_frame_equal(load_records(runs), first)


def test_new_changed_and_lost_records_and_scores_are_seen(runs):
    load_records(runs)
    one, two = sorted(runs.iterdir())
    record = record_clip(one, {"high": [32, 48], "frames": 3}, "new", 7, b"video")
    assert (same(runs)["prompt"] == "new").sum() == 1
    path = edit(two, 1, device="another")
    assert "another" in set(same(runs)["device"])
    book = ScoreBook(one)
    book.add(said(record, flicker=0.5, none=None))
    frame = same(runs).set_index("prompt")
    assert (
        frame.loc["new", "score_flicker"] == 0.5 and frame.loc["new", "metrics"] == "builtin:m1.0"
    )
    assert frame["score_none"].isna().all()  # was asked, has no value: a column all the same
    book.add(said(record, at=2.0, flicker=0.75))
    assert same(runs).set_index("prompt").loc["new", "score_flicker"] == 0.75
    book.add(said(read_record(path), flicker=1.0))  # to another run's book: says nothing there
    path.unlink()
    assert len(same(runs)) == 5
    (lost,) = two.glob("records/*.json")
    lost.write_text(lost.read_text()[:-30])
    assert len(same(runs)) == 4 and "score_old" not in same(runs)


def test_a_record_of_the_same_size_and_time_is_another_one(runs):
    load_records(runs)
    path = next(runs.glob("0000000001/records/*.json"))
    before = path.stat()
    text = path.read_text().replace('"hr": 1.0', '"hr": 9.0')
    assert text != path.read_text()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert 9.0 in set(same(runs)["seconds_hr"])


def test_a_clip_that_was_nan_has_no_scores_in_a_row(runs):
    (record,) = (read_record(p) for p in runs.glob("*/records/*.json") if "nan" in p.read_text())
    ScoreBook(runs / record["run_id"]).add(said(record, flicker=1.0))
    row = same(runs).query("outcome == 'nan'").iloc[0]
    assert row[["score_old", "score_flicker"]].isna().all()


def test_an_altered_video_counts_as_none_however_it_is_asked(runs):
    folder = runs / "0000000001"
    store = store_of(runs)
    keys = [clip_key("a cat", 0), clip_key("", -2), clip_key("other", 0)]
    assert set(keys[:2]) <= set(store.recorded()) and len(store.records(keys)) == 2
    video = store.path("clips", f"{keys[0]}.mp4")
    video.write_bytes(video.read_bytes()[:-1])
    for _ in range(2):
        store = store_of(runs)
        assert store.record(keys[0]) is None and keys[0] not in store.recorded()
        assert store.tally(keys)["clips"] == 1 == len(store.records(keys))
        store.path("clips", f"{keys[1]}.mp4").touch()
    every = [p.stem for p in folder.glob("records/*.json")]
    assert {k for k in every if store.record(k) is not None} == set(store.recorded())
    (record,) = store.records(keys)
    assert record["prompt"] == "" and store.tally(keys)["video"] == record["video"]
    assert store.tally(keys)["hr"] == 1.0 and store.tally(keys)["f"] is None


def test_a_store_sees_what_others_change(runs):
    folder = runs / "0000000001"
    store = store_of(runs)
    keys = [clip_key("a cat", 0), clip_key("new", 7)]

    def tallied():
        store.book.refresh()
        assert keys[0] in store.recorded()
        found = store.tally(keys)
        return found["clips"], found["scores"]

    assert tallied() == (1, {})
    record = record_clip(folder, {"high": [32, 48], "frames": 3}, "new", 7, b"video")
    assert tallied() == (2, {})
    ScoreBook(folder).add(said(record, flicker=0.5))
    assert tallied() == (2, {"flicker": 0.5})
    (folder / record["video"]).unlink()
    assert tallied()[0] == 1


def test_what_was_said_of_a_clip_comes_along_without_the_book(runs, monkeypatch):
    folder = runs / "0000000001"
    (record, *_) = map(read_record, sorted((folder / "records").glob("*.json")))
    book = ScoreBook(folder)
    for at in (1.0, 2.0):
        book.add(said(record, at, flicker=at) | {"depends": {"sha256": "ab"}})
    store = store_of(runs)
    load_records(runs)
    monkeypatch.setattr(index, "ScoreBook", None)
    told = store.recorded()
    known = told.pop(clip_key(record["prompt"], record["seed"]))["verdicts"]
    assert (
        known == [{k: v[k] for k in rows.VERDICT_FIELDS} for v in book.of(record)]
        and len(known) == 2
    )
    assert [clip["verdicts"] for clip in told.values()] == [[], []]
    builtin = type("Builtin", (Scorer,), {"names": ("flicker",)})()
    scoring = Scoring(store.book, {"builtin": builtin}, {"builtin": {}})
    for metric, missing in (("m2.0", []), ("m3.0", ["builtin"])):
        scoring.metric = {"builtin": metric}
        assert scoring.missing({"verdicts": known[:]} | record) == [
            "builtin"
        ]  # of another reference
        settled = [v | {"depends": None} for v in known]
        assert scoring.missing({"verdicts": settled} | record) == missing


@pytest.mark.parametrize("broken", ["lost", "cut", "flipped", "foreign", "older", "folder"])
def test_a_broken_index_is_made_again_without_a_word(broken, runs, capsys):
    first = load_records(runs)
    for path in runs.glob(f"*/{NAME}"):
        data = bytearray(path.read_bytes())
        if broken == "cut":
            path.write_bytes(data[: len(data) // 2])
        elif broken == "flipped":
            place = index.pq.ParquetFile(path).metadata.row_group(0).column(9).data_page_offset
            data[place + 60] ^= 1  # one bit, among the cells of a column
            path.write_bytes(data)
        elif broken == "foreign":
            pd.DataFrame({"a": [1]}).to_parquet(path)
        elif broken == "older":
            table = index.pq.read_table(path)
            about = table.schema.metadata | {b"s2flow": b"0 of another time"}
            table = table.set_column(10, "prompt", index.pa.array(["wrong"] * len(table)))
            index.pq.write_table(table.replace_schema_metadata(about), path)
        else:
            path.unlink()
        if broken == "folder":
            path.mkdir()
    pd.testing.assert_frame_equal(load_records(runs), first)
    pd.testing.assert_frame_equal(load_records(runs), first)
    assert not any(capsys.readouterr())
    assert not list(runs.rglob(".tmp-*"))


def test_records_of_no_common_type_are_read_alike(runs):
    folder = runs / "0000000001"
    for i, seed in enumerate((2**70, 3)):
        edit(folder, i, seed=seed, device=[1, "x"], commit=i or "a", scores={"odd": "text"})
    frame = same(runs)
    assert (
        "1xx" in set(frame["device"]) and 3 in set(frame["seed"]) and "1" in set(frame["commit"])
    )
    edit(folder, 2, seconds={"hr": "soon"})
    assert len(same(runs)) == 4  # no row, and no traceback


def test_many_writers_at_once(runs):
    first, frames = load_records(runs), []
    for path in runs.glob(f"*/{NAME}"):
        path.unlink()
    at_once(*[lambda: frames.append(load_records(runs))] * 4)
    assert len(frames) == 4
    for frame in [*frames, load_records(runs)]:
        pd.testing.assert_frame_equal(frame, first)
    assert not list(runs.rglob(f".tmp-{socket.gethostname()}-*"))


def test_a_small_run_has_no_index(tmp_path):
    finished_run(tmp_path, 2)
    assert len(load_records(tmp_path)) == 2 and not list(tmp_path.glob(f"*/{NAME}"))


ODD = [None, True, 1, 1.5, float("nan"), 2**70, 10**400, "text", "\ud83e", [1, [2]], {"a": 1}]


@pytest.mark.parametrize("name", ["seed", "fp8", "sparsity", "score_x", "prompt"])
def test_a_column_has_the_type_of_its_name_whatever_records_hold(name):
    table = rows.table_of([{name: value} for value in ODD])
    plain = rows.table_of([{name: {"prompt": "text", "fp8": True}.get(name, 1)}])
    assert table.schema == plain.schema and len(rows.joined([table, plain])) == len(ODD) + 1
    kept = {"seed": [1, 1], "fp8": [True], "prompt": ["True", "1", "1.5"]}.get(
        name, [1.0, 1.0, 1.5]
    )
    assert [v for v in rows.values_of(table, name) if v is not None][: len(kept)] == kept
