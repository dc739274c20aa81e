"""The store: whole files or none, a clip is done when its record is, and rows for the tables."""

import json
import math
import os
import socket
import subprocess
from dataclasses import fields
from functools import partial

import pytest
from finished import at_once

from s2flow.errors import UserError
from s2flow.recipe.identity import Recipe
from s2flow.store import Store, clip_key, load_records, write_json, written_whole
from s2flow.store.recipes import KNOBS

PROMPT, SEED = "a cat", 3
KEY = clip_key(PROMPT, SEED)
RECIPE = {
    "backbone": "micro",
    "method": "s2flow",
    "sparsity": 0.5,
    "density": "volume",
    "order": 2,
}
RECIPE |= {
    "solver": "lri",
    "t_i": 2,
    "steps": 3,
    "handoff": "x0",
    "noise": "fresh",
    "guidance": 4.0,
}
RECIPE |= {"shift": 1.5, "weights": "abc", "low": [32, 48], "stencil": "grid", "lr_time": "sigma"}
RECIPE |= {"upsample": "bilinear", "negative_prompt": ""}


def record_of(store, key=KEY, **other):
    """Write a clip and its record, as the runner does."""
    with written_whole(store.path("clips", f"{key}.mp4")) as temporary:
        temporary.write_bytes(b"video " * 100)
    record = {"status": "ok", "run_id": store.run_id, "recipe": RECIPE}
    record |= {"prompt": PROMPT, "seed": SEED}
    record |= {"video": f"clips/{key}.mp4", "bytes": 600, "height": 64, "width": 96, "frames": 2}
    record |= {"windows": "adaptive", "density": {"2": 0.5, "1": 0.25}, "device": "cpu"}
    record |= {"seconds": {"lr": 1.0, "hr": 2.0, "decode": 0.5}, "commit": "abc"}
    record |= {"scores": {"detail": 0.7, "world_agreement": None}, **other}
    store.commit(key, record)
    return record


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs", "0123456789", RECIPE)


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


# -- whole files or none ------------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file"
    with written_whole(path) as temporary:
        temporary.write_text("first")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "first" and files(tmp_path) == {"deep/file"}
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), written_whole(path) as temporary:
            temporary.write_text("second, half")
            raise error
    with pytest.raises(FileNotFoundError), written_whole(path):
        pass  # nothing is written
    assert path.read_text() == "first" and files(tmp_path) == {"deep/file"}


@pytest.mark.parametrize("value", [math.nan, math.inf, {"scores": {"psnr": -math.inf}}])
def test_json_refuses_nan_and_keeps_text_literally(value, tmp_path):
    old = {"prompt": "🦊 \u2028 \\ \" ' ${x}\n\t"}
    write_json(tmp_path / "file.json", old)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file.json", value)
    assert json.loads((tmp_path / "file.json").read_text(encoding="utf-8")) == old
    assert files(tmp_path) == {"file.json"}


def test_of_twenty_writers_of_one_file_one_wins(tmp_path):
    values = [{"writer": i, "text": str(i) * 10_000} for i in range(20)]
    path = tmp_path / "file.json"
    at_once(*(partial(write_json, path, v) for v in values))
    assert json.loads(path.read_text()) in values and files(tmp_path) == {"file.json"}


# -- what counts as done ------------------------------------------------------------------------


def test_keys_depend_on_prompt_and_seed_and_stay_as_they_are():
    assert KEY == "9a98f8333c6492b1"
    texts = ["a cat", "a cat ", "A cat", "", "1\0a cat", "🦊"]
    assert len({clip_key(t, s) for t in texts for s in (0, 1, -1, 11)}) == 4 * len(texts)
    assert clip_key(PROMPT, SEED, PROMPT) == clip_key(PROMPT, SEED, None) == KEY
    assert clip_key(PROMPT, SEED, "short") not in (KEY, clip_key("short", SEED, PROMPT))


def test_a_clip_is_finished_when_record_and_video_are_whole(store):
    assert store.record(KEY) is None
    store.fail(KEY, {"status": "failed"})
    video, path = store.path("clips", f"{KEY}.mp4"), store.path("records", f"{KEY}.json")
    video.write_bytes(b"video without a record")
    assert store.record(KEY) is None and store.path("failures", f"{KEY}.json").exists()
    record = record_of(store)
    assert store.record(KEY) == record | {"scores": record["scores"], "scorers": {}}
    assert not store.path("failures", f"{KEY}.json").exists()
    video.write_bytes(video.read_bytes()[:-1])
    assert store.record(KEY) is None
    video.unlink()
    assert store.record(KEY) is None
    for other in ("[]", "null", "{}", '{"status": "failed", "bytes": 3}'):
        path.write_text(other)
        assert store.record(KEY) is None


def test_only_the_temporaries_of_the_dead_are_swept_up(store):
    dead = subprocess.Popen(["true"])
    dead.wait()
    clips, host = store.folder / "clips", socket.gethostname()
    # of a dead process, of a worker that lives, of another machine
    of = (f"{host}-{dead.pid}", f"{host}-{os.getppid()}", f"elsewhere-{dead.pid}")
    gone, *kept = (clips / f".tmp-{process}-12345678-a.mp4" for process in of)
    for path in (gone, *kept):
        path.touch()
    Store(store.runs_dir, store.run_id, RECIPE)
    assert not gone.exists() and all(path.exists() for path in kept)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    message = r"runs_dir=.*file/runs cannot be written .*type runs_dir="
    with pytest.raises(UserError, match=message):
        Store(tmp_path / "file" / "runs", "0123456789", RECIPE)


# -- rows for the tables ------------------------------------------------------------------------


def test_rows_of_the_tables(store):
    record_of(store)
    (row,) = load_records(store.runs_dir).to_dict("records")
    plain = {k: v for k, v in RECIPE.items() if k != "low"}
    assert {k: row[k] for k in plain} == plain
    assert row["low"] == "32x48"
    wanted = {"run_id": "0123456789", "prompt": PROMPT, "seed": SEED, "status": "ok"}
    wanted |= {"height": 64, "width": 96, "frames": 2, "device": "cpu", "commit": "abc"}
    wanted |= {"windows": "adaptive", "realised_density": 0.375, "seconds_total": 3.5}
    wanted |= {"seconds_lr": 1.0, "seconds_hr": 2.0, "score_detail": 0.7}
    assert {k: row[k] for k in wanted} == wanted
    assert row["score_world_agreement"] is None


def test_every_knob_of_a_recipe_is_a_column():
    others = ("frames", "high", "windows", "knobs")  # facts of the record, or not in the recipe
    assert [f.name for f in fields(Recipe) if f.name not in others] == list(KNOBS)


def test_knobs_that_a_method_ignores_are_empty(store):
    recipe = {k: RECIPE[k] for k in ("backbone", "weights", "method", "steps", "shift")}
    record_of(store, recipe=recipe, density=None, windows=None)
    (row,) = load_records(store.runs_dir).to_dict("records")
    for name in ("sparsity", "low", "t_i", "order", "windows", "realised_density"):
        assert row[name] is None


def test_rows_skip_what_is_not_whole(store, tmp_path):
    assert load_records(tmp_path / "nowhere").empty
    record_of(store)
    store.path("records", "half.json").write_text('{"status": "o')
    store.path("records", ".tmp-host-1-2-x.json").write_text('{"status": "ok", "bytes": 1}')
    store.fail("other", {"status": "failed"})
    assert len(load_records(store.runs_dir)) == 1
