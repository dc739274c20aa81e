"""Two stores become one: nothing valid is lost, the order does not matter, a kill costs nothing."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from finished import finished_run
from test_store_faults import clean, files, video_of

from s2flow.errors import UserError
from s2flow.store import clip_key, load_records, read_record, sha256_of, write_json
from s2flow.store.__main__ import main
from s2flow.store.merge import merge
from s2flow.store.scorebook import ScoreBook


def state(runs):
    """Content of every file but the index."""
    return {n: sha256_of(runs / n) for n in files(runs) if not n.endswith("index.parquet")}


def run_of(runs, clips, run_id="0000000001", **changed):
    """A run of clips whose records are changed so; its folder."""
    folder = finished_run(runs, [(f"p{i}", 0) for i in clips], run_id)
    for path in folder.glob("records/*.json"):
        write_json(path, json.loads(path.read_text()) | changed)
    return folder


def record_of(folder, i):
    return folder / "records" / f"{clip_key(f'p{i}', 0)}.json"


def anew(folder, i, data, at):
    """Clip i as another worker made it."""
    path = record_of(folder, i)
    video_of(path).write_bytes(data)
    changed = {"sha256": sha256_of(video_of(path)), "bytes": len(data), "at": at}
    write_json(path, json.loads(path.read_text()) | changed)


@pytest.fixture
def two(tmp_path):
    """Stores a and b: a run that both have, with a clip in common, and one of b alone."""
    a, b = run_of(tmp_path / "a", [0, 1]), run_of(tmp_path / "b", [1, 2])
    run_of(tmp_path / "b", [5], "0000000002")
    anew(a, 1, b"made here", 20.0)
    anew(b, 1, b"made there, earlier", 10.0)
    (b / "clips" / f"{clip_key('p2', 0)}.low.mp4").write_bytes(b"low")
    (b / "latents").mkdir()
    (b / "latents" / f"{clip_key('p1', 0)}.safetensors").write_bytes(b"latent")
    (tmp_path / "b" / "lr_cache").mkdir()
    (tmp_path / "b" / "lr_cache" / "x.safetensors").write_bytes(b"flow")
    (b / "clips" / ".tmp-host-1-12345678-a.mp4").touch()
    return tmp_path / "a", tmp_path / "b"


def test_both_orders_give_one_store_and_the_last_of_two_wins(two, tmp_path, capsys):
    a, b = two
    for name, first, second in (("ab", a, b), ("ba", b, a)):
        assert main(["merge", str(first), "--into", str(tmp_path / name)]) == 0
        assert main(["merge", str(second), "--into", str(tmp_path / name)]) == 0
    assert state(tmp_path / "ab") == state(tmp_path / "ba")
    assert clean(tmp_path / "ab") and len(load_records(tmp_path / "ab")) == 4
    record = read_record(record_of(tmp_path / "ab" / "0000000001", 1))
    assert record["at"] == 20.0 and record["duplicates"] == 1 and len(record["merged"]) == 1
    assert not list((tmp_path / "ab").rglob("latents/*"))  # they were of the clip that gave way
    assert (tmp_path / "ab/0000000001/clips" / f"{clip_key('p2', 0)}.low.mp4").exists()
    assert not (tmp_path / "ab" / "lr_cache").exists() and not list((tmp_path / "ab").rglob(".*"))
    before = state(tmp_path / "ab")
    for other in (a, b, tmp_path / "ba"):  # again and again changes nothing
        assert main(["merge", str(other), "--into", str(tmp_path / "ab")]) == 0
    assert state(tmp_path / "ab") == before
    assert "1 were in both, of which 1 gave way" in capsys.readouterr().out


def test_of_two_made_at_once_the_hash_decides(two, tmp_path):
    a, b = two
    anew(a / "0000000001", 1, b"one", 5.0)
    anew(b / "0000000001", 1, b"other", 5.0)
    for first, second in ((a, b), (b, a)):
        merge(first, tmp_path / f"m{first.name}")
        merge(second, tmp_path / f"m{first.name}")
    assert state(tmp_path / "ma") == state(tmp_path / "mb")


@pytest.mark.parametrize("broken", ["video", "record", "gone", "foreign"])
def test_the_valid_one_wins_even_if_it_is_older(broken, two, tmp_path, capsys):
    a, b = two
    path = record_of(a / "0000000001", 1)  # the later one
    if broken == "video":
        video_of(path).write_bytes(b"made hEre")
    elif broken == "gone":
        video_of(path).unlink()
    elif broken == "record":
        path.write_text(path.read_text()[:-20])
    else:
        write_json(path, json.loads(path.read_text()) | {"run_id": "another"})
    shutil.copytree(a, tmp_path / "a2")
    assert main(["merge", str(b), "--into", str(a)]) == 0
    assert video_of(path).read_bytes() == b"made there, earlier" and clean(a)
    assert main(["merge", str(tmp_path / "a2"), "--into", str(b)]) == 1
    assert "1 clips of" in capsys.readouterr().err
    assert read_record(record_of(b / "0000000001", 1))["at"] == 10.0


def test_recipes_that_differ_stop_it_before_anything_is_written(two, capsys):
    a, b = two
    recipe = json.loads((b / "0000000002" / "recipe.json").read_text())
    run_of(a, [5], "0000000002")
    write_json(a / "0000000002" / "recipe.json", recipe | {"frames": 99})
    before = state(a)
    assert main(["merge", str(b), "--into", str(a)]) == 2 and state(a) == before
    err = capsys.readouterr().err
    assert "0000000002 has another recipe" in err and "frames differ" in err
    (b / "0000000001" / "recipe.json").write_text("{")
    with pytest.raises(UserError, match="recipe.json is gone or cut off; type python -m s2flow"):
        merge(b, a)


def test_scores_and_failures(two):
    a, b = (store / "0000000001" for store in two)
    key = clip_key("p2", 0)
    video = read_record(record_of(b, 2))["sha256"]
    for folder, scores in ((a, {"x": 0.1}), (b, {"flicker": 0.5})):
        book = ScoreBook(folder)
        book.add(
            {"key": key, "clip": video, "scorer": str(scores), "metric": "m", "status": "ok"}
            | {"scores": scores, "at": 1.0}
        )
    (path,) = b.glob("scores/*")
    shutil.copy(path, b / "scores" / "same.jsonl")
    (a / "scores" / "same.jsonl").write_text("")  # b's goes on from it
    shutil.copy(next(a.glob("scores/[!s]*")), a / "scores" / path.name)  # another's name
    for name in (key, clip_key("p0", 0), clip_key("p9", 0)):
        write_json(b / "failures" / f"{name}.json", {"status": "failed", "error": "x"})
    write_json(a / "failures" / f"{key}.json", {"status": "failed"})
    done = merge(two[1], two[0])
    assert (done["scores"], done["failures"]) == (2, 1)
    assert [p.stem for p in a.glob("failures/*")] == [clip_key("p9", 0)]
    row = load_records(two[0]).query("prompt == 'p2'").iloc[0]
    assert row["score_flicker"] == 0.5
    assert merge(two[1], two[0])["scores"] == 0 and clean(two[0])


def test_links_out_of_the_other_store_are_not_read(two, tmp_path):
    a, b = two
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (b / "0000000001" / "sheets").mkdir()
    (b / "0000000001" / "sheets" / f"{clip_key('p2', 0)}.png").symlink_to(secret)
    assert main(["merge", str(b), "--into", str(a)]) == 1
    assert "secret" not in {p.read_text(errors="replace") for p in a.rglob("*.*") if p.is_file()}


def test_killed_at_any_moment_and_typed_again(two, tmp_path):
    a, b = two
    for i in range(10):
        run_of(b, range(3), f"1{i:09}")
    whole = tmp_path / "whole"
    shutil.copytree(a, whole)
    merge(b, whole)
    target = 6  # records
    for _ in range(3):
        child = os.fork()
        if not child:
            merge(b, a)
            os._exit(0)
        while len(list(a.glob("*/records/[!.]*.json"))) < target:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the merge was over before the kill"
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        target += 8
        for path in a.glob("*/records/[!.]*.json"):  # whatever is recorded is whole
            assert sha256_of(video_of(path)) == read_record(path)["sha256"]
    merge(b, a)
    assert main(["gc", str(a), "--yes", "--older-than", "0s"]) == 0 and clean(a)
    assert state(a) == state(whole)
    assert not list(Path(a).rglob(".tmp-*"))
