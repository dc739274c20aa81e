"""Weights of VBench: located, hashed, fetched only when asked, opened as code only when trusted."""

import argparse
import hashlib
import os
import pickle
import subprocess
import urllib.request
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from finished import encoded

from s2flow.errors import UserError
from s2flow.scorers import Clip
from s2flow.scorers.musiq import Musiq
from s2flow.scorers.vbench import VBench, __main__, compat, twin, weights

FIVE = [w for w in weights.TABLE if w.key != "bpe"]
needs_vbench = pytest.mark.skipif(
    not compat.shipped("clip", "clip.py"),
    reason="pip install --no-deps -r requirements/vbench.txt",
)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(VBench, "check_package", lambda self: None)


@pytest.mark.parametrize("device", ["banana", "meta", "cuda:99", "cuda:-1", None])
def test_an_unavailable_device_is_refused_in_one_line(device):
    pinned = partial(twin.VBenchSubprocess, "x")
    for key, scorer in {"vbench": VBench, "vbench_subprocess": pinned, "musiq": Musiq}.items():
        said = rf"^scorer\.{key}\.device={device}\b.* type [^\n]*$"
        with pytest.raises(UserError, match=said):
            scorer(device=device)


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(subprocess, "run", refuse)


def put(cache, key, data):
    path = cache / next(w.file for w in weights.TABLE if w.key == key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def test_the_table_holds_what_the_addresses_say():
    of = {w.key: w for w in weights.TABLE}
    for weight in (of["clip_b32"], of["clip_l14"]):
        assert weight.sha256 in weight.url and len(weight.sha256) == 64
    assert of["musiq_spaq"].file.endswith(f"ckpt-{of['musiq_spaq'].sha256}.pth")


@needs_vbench
def test_the_files_are_where_the_package_looks_for_them(tmp_path, monkeypatch):
    for weight in weights.TABLE:  # it would start wget for any that it misses
        put(tmp_path, weight.key, b"x")
    with compat.imports(tmp_path):
        import vbench.utils as package
    monkeypatch.setattr(
        package.subprocess, "run", lambda *a, **k: pytest.fail(f"wget was started: {a}")
    )
    dimensions = {w.dimension for w in weights.TABLE}
    needed = str(package.init_submodules(list(dimensions), local=True))
    for weight in weights.TABLE:
        if weight.key not in ("bpe", "laion_head"):
            assert str(tmp_path / weight.file) in needed
    head = next(w.file for w in weights.TABLE if w.key == "laion_head")
    assert str((tmp_path / head).parent) in needed
    assert [w.url for w in FIVE if w.key == "clip_b32"][0] in Path(package.__file__).read_text()


def test_all_missing_files_stand_in_one_line(installed, offline, tmp_path):
    with pytest.raises(UserError) as raised:
        VBench(cache_dir=tmp_path, device="cpu").prepare()
    said = str(raised.value)
    assert "\n" not in said
    texts = [str(tmp_path / w.file) for w in FIVE] + [w.url for w in FIVE] + ["on_missing=skip"]
    assert all(text in said for text in texts)


def test_skip_marks_the_dimensions_and_scores_the_rest(installed, offline, tmp_path):
    digest = put(tmp_path, "amt_s", b"weights")
    made = VBench(cache_dir=tmp_path, on_missing="skip", device="cpu")
    made.prepare()
    missing = {name.split(".")[1]: part.needs for name, part in made.parts().items()}
    assert missing.pop("temporal_flickering") == missing.pop("motion_smoothness") == []
    assert sorted(sum(missing.values(), [])) == sorted(w.file for w in FIVE if w.key != "amt_s")
    assert made.parts()["vbench.motion_smoothness"].weights == {"amt_model/amt-s.pth": digest}


def test_a_file_with_another_hash_is_refused_whatever_on_missing_says(installed, tmp_path):
    for weight in FIVE:
        digest = put(tmp_path, weight.key, b"other")
    for choice in ("error", "skip"):
        with pytest.raises(UserError, match=digest) as raised:
            VBench(cache_dir=tmp_path, on_missing=choice, device="cpu").prepare()
        named = {w.key for w in FIVE if w.file in str(raised.value)}
        assert named == {"clip_b32", "clip_l14", "musiq_spaq"}  # of the others none is known
    own = dict.fromkeys(named, digest)
    VBench(cache_dir=tmp_path, sha256=own, device="cpu").prepare()
    with pytest.raises(UserError, match="amt-s"):
        VBench(cache_dir=tmp_path, sha256=own | {"amt_s": "0" * 64}, device="cpu").prepare()


def test_a_file_that_changes_is_hashed_again(tmp_path):
    first = put(tmp_path, "amt_s", b"weights")
    (found,) = weights.look(["motion_smoothness"], tmp_path)
    assert (found.state, found.sha256, found.trusted) == ("present", first, False)
    second = put(tmp_path, "amt_s", b"other weights")
    (found,) = weights.look(["motion_smoothness"], tmp_path, {"amt_s": second})
    assert (found.sha256, found.trusted) == (second, True)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The table, served from a folder: {key: path of what would arrive}."""
    paths = {w.key: tmp_path / "there" / w.key for w in weights.TABLE}
    (tmp_path / "there").mkdir()
    for key, path in paths.items():
        path.write_bytes(key.encode() * 1000)
    digest = {key: weights.sha256_of(path) for key, path in paths.items()}
    table = [replace(w, url=paths[w.key].as_uri(), sha256=digest[w.key]) for w in weights.TABLE]
    monkeypatch.setattr(weights, "TABLE", tuple(table))
    return paths


def test_what_is_missing_is_fetched_when_allowed(installed, served, tmp_path):
    made = VBench(cache_dir=tmp_path / "cache", allow_download=True, device="cpu")
    made.prepare()
    files = weights.look(made.dimensions, tmp_path / "cache")
    states = {f.weight.key: f.state for f in files}
    assert states.pop("bpe") == "bundled" and set(states.values()) == {"present"}


def test_a_wrong_file_that_arrives_is_not_kept(installed, served, tmp_path):
    served["amt_s"].write_bytes(b"an error page")
    how = {"cache_dir": tmp_path / "c", "allow_download": True, "device": "cpu"}
    made = VBench(["motion_smoothness"], **how)
    with pytest.raises(UserError, match="instead of"):
        made.prepare()
    served["amt_s"].unlink()
    with pytest.raises(UserError, match="could not be fetched"):
        made.prepare()
    assert [p for p in (tmp_path / "c").rglob("*") if p.is_file()] == []


class Harmful:
    """Runs when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def scored(cache, clip, **how):
    made = VBench(["motion_smoothness"], cache_dir=cache, device="cpu", **how)
    made.prepare()
    return made.parts()["vbench.motion_smoothness"].score(clip)


@pytest.fixture
def clip(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(encoded(3, 128, 128))
    return Clip(tmp_path / "clip.mp4", "a cat", 0, tmp_path)


@needs_vbench
def test_code_in_a_checkpoint_does_not_run(tmp_path, clip):
    mark = tmp_path / "harm"
    put(tmp_path, "amt_s", pickle.dumps(Harmful(mark)))
    with pytest.raises(UserError, match="sha256.amt_s"):
        scored(tmp_path, clip)
    assert not mark.exists()


@needs_vbench
def test_more_than_tensors_are_read_only_from_trusted_files(tmp_path, clip):
    import tiny_vbench  # needs VBench

    tiny_vbench.make_cache(tmp_path)
    path = tmp_path / "amt_model/amt-s.pth"
    torch.save(torch.load(path) | {"options": argparse.Namespace()}, path)
    with pytest.raises(UserError, match="sha256.amt_s"):
        scored(tmp_path, clip)
    own = {"amt_s": weights.sha256_of(path)}
    assert 0 < scored(tmp_path, clip, sha256=own)["motion_smoothness"] < 1


def test_archives_of_code_are_opened_only_when_trusted(tmp_path):
    path = tmp_path / "archive.pt"
    torch.jit.script(torch.nn.Linear(1, 1)).save(path)
    with compat.guarded([]), pytest.raises(RuntimeError):
        torch.jit.load(path)
    with compat.guarded([]), open(path, "rb") as file, pytest.raises(RuntimeError):
        torch.jit.load(file)
    with compat.guarded([str(path)]), open(path, "rb") as file:
        torch.jit.load(file)


def test_check_prints_paths_sources_and_wrong_hashes(offline, tmp_path, capsys):
    assert __main__.main(["check", "--cache", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    for weight in FIVE:
        texts = (str(tmp_path / weight.file), weight.url, weight.licence, weight.size)
        assert all(text in out for text in texts)
    assert "6 of 7 files are missing" in out
    digest = put(tmp_path, "musiq_spaq", b"other")
    assert __main__.check(["imaging_quality"], str(tmp_path)) == 1
    out = capsys.readouterr().out
    assert "wrong hash" in out and digest in out and "expected 358bb6af" in out


@needs_vbench
def test_check_is_content_where_nothing_is_needed(tmp_path, capsys):
    assert __main__.check(["temporal_flickering"], str(tmp_path)) == 0


def test_the_command_refuses_other_dimensions_in_a_line(capsys):
    assert __main__.main(["check", "color"]) == 2
    assert capsys.readouterr().err.startswith("error: dimension color")


@pytest.mark.parametrize(
    ("versions", "error"),
    [({}, "not installed; type .*requirements/vbench.txt"), ({"vbench": "0.1.4"}, "0.1.4")],
)
def test_without_the_package_scoring_is_refused(versions, error, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("s2flow.scorers.vbench.worker.versions", lambda: versions)
    with pytest.raises(UserError, match=error):
        VBench(cache_dir=tmp_path, device="cpu").prepare()
    assert __main__.check(["temporal_flickering"], str(tmp_path)) == 1
    assert "requirements/vbench.txt" in capsys.readouterr().out
