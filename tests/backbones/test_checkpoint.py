"""Real checkpoints through run.py: a clip, a resume, and one line for whatever cannot be opened."""

import functools
import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import refusal, run_here
from test_runner import state

from s2flow.backbones import checkpoint, hunyuan, hunyuan15, wan
from s2flow.backbones.base import Origin
from s2flow.process import loading
from s2flow.store import read_run

SIZES = ("low=[32,48]", "high=[64,96]", "frames=5", "steps=3", "t_i=2", "device=cpu")
BRICKS = ("brick_low=[1,1,1]", "brick_high=[1,2,2]")
SMALL = (*SIZES, *BRICKS, "backbone.dtype=float32", "prompts.count=2")
CONF = {"wan": "wan_1_3b", "hunyuan": "hunyuan"}
LATER = {"wan_2_2_5b": wan, "wan_2_2_14b": wan, "hunyuan_1_5": hunyuan15}
FAMILIES = {"wan": wan, "hunyuan": hunyuan} | LATER
pytestmark = pytest.mark.usefixtures("fresh")


@pytest.fixture
def fresh():
    """No backbone or name of weights left over from, or for, another test."""
    yield
    loading._loaded.clear()
    loading.weights_hash.cache_clear()
    checkpoint.hub_commit.cache_clear()


@pytest.fixture
def command(monkeypatch, tmp_path):
    """run.py with these words; returns its exit code."""
    return functools.partial(run_here, monkeypatch, tmp_path)


@pytest.fixture(params=list(CONF))
def family(request):
    return request.param


@pytest.fixture
def folder(family, folders, tmp_path):
    """A copy of the family's checkpoint, to break."""
    return shutil.copytree(folders[family], tmp_path / "checkpoint")


@pytest.fixture
def typed(family, folder, command):
    """run.py with this backbone, folder and small sizes; later words win."""

    def run(*words):
        names = {w.partition("=")[0] for w in words}
        small = [*SMALL, *(("low=[64,96]", "high=[128,192]") if family == "wan_2_2_5b" else ())]
        usual = [w for w in small if w.partition("=")[0] not in names]
        source = [] if "backbone.source" in names else [f"backbone.source={folder}"]
        conf = [] if "backbone" in names else [f"backbone={CONF.get(family, family)}"]
        return command(*conf, *source, *usual, *words)

    return run


def records(tmp_path):
    folders = sorted(p.parent for p in tmp_path.glob("runs/*/records"))
    return [record for folder in folders for record in read_run(folder)]


# -- the whole of run.py ------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(FAMILIES), indirect=True)
def test_run_makes_clips_resumes_and_records_what_the_embedded_backbone_does(
    typed,
    family,
    folder,
    command,
    tmp_path,
    monkeypatch,
):
    assert typed("batch=2") == 0
    made = records(tmp_path)
    assert len(made) == 2 and all(r["status"] == "ok" for r in made)
    for r in made:
        k = 2 if family == "wan_2_2_5b" else 1
        assert (r["frames"], r["height"], r["width"]) == (5, k * 64, k * 96)
        assert r["recipe"]["weights"] == FAMILIES[family].identity(Origin("x", str(folder)))
        assert r["source"] == str(folder) and r["revision"] is None and r["dtype"] == "float32"
        assert (tmp_path / "runs" / r["run_id"] / r["video"]).stat().st_size == r["bytes"]
    before = state(tmp_path / "runs")
    monkeypatch.setattr(loading, "load_backbone", None)  # not even loaded
    assert typed("batch=1") == 0
    assert state(tmp_path / "runs") == before
    monkeypatch.undo()

    shutil.rmtree(tmp_path / "runs")
    assert command("steps=3", "t_i=2", "frames=2", "prompts.count=2", "scorer=[builtin]") == 0
    embedded = records(tmp_path)
    assert {frozenset(r) for r in made} == {frozenset(r) for r in embedded}
    more = {"guidance_2"} if family == "wan_2_2_14b" else set()
    assert set(made[0]["recipe"]) == set(embedded[0]["recipe"]) | more
    for field in ("seconds", "versions", "scores"):
        assert set(made[0][field]) == set(embedded[0][field])


@pytest.mark.parametrize("family", ["wan"], indirect=True)
def test_the_models_type_is_part_of_the_run(typed, folder, tmp_path):
    half = wan.from_origin(Origin("x", str(folder), dtype="bfloat16"), "cpu")
    assert half.transformer.dtype == torch.bfloat16 == half.pipeline.text_encoder.dtype
    assert half.vae.dtype == torch.float32
    assert typed("prompts.count=1", "backbone.dtype=bfloat16") == 0
    (half,) = records(tmp_path)
    assert half["recipe"]["dtype"] == half["dtype"] == "bfloat16"
    assert typed("prompts.count=1") == 0
    assert len({r["run_id"] for r in records(tmp_path)}) == 2


# -- bad input ----------------------------------------------------------------------------------


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def shards(part):
    """The same weights as two shards and an index."""
    (file,) = part.glob("*.safetensors")
    weights, stem = load_file(file), file.stem
    names = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    place = {k: names[i % 2] for i, k in enumerate(sorted(weights))}
    for name in names:
        save_file({k: w for k, w in weights.items() if place[k] == name}, part / name)
    index = {"metadata": {"total_size": 1}, "weight_map": place}
    (part / f"{file.name}.index.json").write_text(json.dumps(index))
    file.unlink()
    return names


def weights(folder, part="transformer"):
    return next((folder / part).glob("*.safetensors"))


def pickled(folder):
    torch.save({}, folder / "transformer" / "diffusion_pytorch_model.bin")
    weights(folder).unlink()


def cut(folder, part="transformer", keep=0.5):
    file = weights(folder, part)
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])


def without_a_shard(folder):
    (folder / "transformer" / shards(folder / "transformer")[1]).unlink()


def wrong_part(folder):
    change(folder / "model_index.json", vae=["diffusers", "AutoencoderKL"])


BROKEN = {  # what happened to the folder -> what the line must say
    "is empty": (lambda f: [shutil.rmtree(f), f.mkdir()], "no checkpoint model_index.json type"),
    "is no JSON": (lambda f: (f / "model_index.json").write_text("{"), "model_index.json JSON"),
    "is another pipeline": (
        lambda f: change(f / "model_index.json", _class_name="FluxPipeline"),
        "FluxPipeline choose another backbone=",
    ),
    "has another autoencoder": (wrong_part, "vae AutoencoderKL must be"),
    "names code of its own": (
        lambda f: change(f / "model_index.json", tokenizer=["my_code", "PreTrainedTokenizerFast"]),
        "tokenizer my_code.PreTrainedTokenizerFast must be diffusers or transformers",
    ),
    "has a strange part": (
        lambda f: change(f / "model_index.json", image_encoder=["diffusers", "X"]),
        "image_encoder does not know",
    ),
    "lost a part": (lambda f: shutil.rmtree(f / "vae"), "lacks the folder vae fetch"),
    "lost a shard": (without_a_shard, "lacks 1 of 2 shards 00002-of-00002 fetch"),
    "lost its weights": (lambda f: weights(f).unlink(), "transformer no safetensors fetch"),
    "is pickled": (pickled, "pickled never opened safe_serialization=True"),
    "is half a file": (cut, "truncated bytes fetch"),
    "is a torn header": (lambda f: cut(f, "vae", 0.001), "vae truncated fetch"),
    "is an empty file": (lambda f: cut(f, "text_encoder", 0), "text_encoder truncated fetch"),
    "does not fit its config": (
        lambda f: change(f / "transformer" / "config.json", num_attention_heads=4),
        "cannot be opened fetch",
    ),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_folder_that_cannot_be_used_costs_one_line(damage, folder, typed, capsys):
    spoil, said = BROKEN[damage]
    spoil(folder)
    line = refusal(typed(), capsys)
    for word in [*said.split(), str(folder)]:
        assert word in line, line


TYPED = {  # what is typed -> what the line must say
    "high=[1540,2560]": "high=[1540,2560] 16 type high=[1536,2560]",
    "low=[33,48]": "low=[33,48] 16 type low=[32,48]",
    "frames=118": "frames=118 4 plus 1 type frames=117",
    "backbone.dtype=int8": "backbone.dtype=int8 type float32|bfloat16|float16",
    "backbone.source=/no/such/folder": "backbone.source=/no/such/folder type backbone.source=FOLDER",
    "backbone.source=null": "backbone.source not set type backbone.source=FOLDER",
    "backbone.multiple=8": "backbone.multiple=8 have 16 type backbone.multiple=16",
    "backbone.frame_step=1": "backbone.frame_step=1 have 4 type backbone.frame_step=4",
    "windows.dense_layers=[77]": "windows.dense_layers 77 layers 0..",
}


@pytest.mark.parametrize("word", TYPED)
def test_a_mistake_gives_one_line_that_says_what_to_type(word, typed, capsys):
    line = refusal(typed(word), capsys)
    for said in TYPED[word].split():
        assert said in line, line


@pytest.mark.parametrize("family", ["hunyuan"], indirect=True)
def test_embedded_guidance_takes_no_negative_prompt(typed, capsys):
    line = refusal(typed("negative_prompt=blurry"), capsys)
    assert "negative_prompt=blurry" in line and "leave negative_prompt out" in line


def test_the_embedded_backbone_takes_no_other_weights(command, capsys):
    for word in ("backbone.source=/tmp", "backbone.dtype=bfloat16"):
        assert "backbone=micro ships with its weights" in refusal(command(word), capsys)


# -- the hub ------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A hub at a port where nothing listens, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    for module in ("constants", "file_download", "_snapshot_download"):
        monkeypatch.setattr(
            f"huggingface_hub.{module}.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False
        )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_hub_name_without_network(typed, no_network, capsys):
    start = time.perf_counter()
    line = refusal(typed("backbone.source=some-owner/some-model"), capsys)
    assert "backbone.source=some-owner/some-model" in line and "no network" in line
    assert "type backbone.source=FOLDER" in line
    assert time.perf_counter() - start < 30


def test_a_pinned_commit_needs_no_network_for_its_name_but_for_its_weights(
    typed, no_network, capsys, family
):
    pin = "0123456789abcdef0123456789abcdef01234567"
    origin = Origin("x", "some-owner/some-model", pin)
    assert FAMILIES[family].identity(origin) == pin[:12]
    assert checkpoint.revision(origin) == pin
    words = ("backbone.source=some-owner/some-model", f"backbone.revision={pin}")
    line = refusal(typed(*words), capsys)
    assert "some-owner/some-model cannot be fetched" in line and "FOLDER" in line


def test_what_was_fetched_before_runs_without_network(typed, no_network, folder, family, tmp_path):
    """The cache's own layout: refs/main names the commit, snapshots/<commit> is the folder."""
    pin = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--some-owner--some-model"
    shutil.copytree(folder, repo / "snapshots" / pin)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(pin)
    assert typed("backbone.source=some-owner/some-model", "prompts.count=1") == 0
    (record,) = records(tmp_path)
    assert record["recipe"]["weights"] == pin[:12] and record["revision"] == pin
    assert record["source"] == "some-owner/some-model"


# -- the name of a folder's weights -------------------------------------------------------------


def name_of(folder, family):
    return FAMILIES[family].identity(Origin("x", str(folder)))


def test_the_name_follows_the_content_and_not_the_place(folder, folders, family, tmp_path):
    first = name_of(folder, family)
    assert name_of(folders[family], family) == first
    (folder / "README.md").write_text("notes")
    change(folder / "scheduler" / "scheduler_config.json", shift=9.0)  # ours is in the recipe
    assert name_of(folder, family) == first
    names = {first}
    change(folder / "transformer" / "config.json", eps=1e-4)
    names.add(name_of(folder, family))
    change(folder / "tokenizer" / "tokenizer_config.json", model_max_length=7)
    names.add(name_of(folder, family))
    assert len(names) == 3


@pytest.mark.parametrize("small", [checkpoint.SMALL, 0])
def test_a_change_of_every_weight_of_any_tensor_is_seen(folder, family, small, monkeypatch):
    """Also where only headers and samples are read, as of files of gigabytes."""
    monkeypatch.setattr(checkpoint, "SMALL", small)
    monkeypatch.setattr(checkpoint, "SAMPLE", 8)
    file = weights(folder)
    tensors, names = load_file(file), {name_of(folder, family)}
    some = sorted(tensors)[:: max(len(tensors) // 5, 1)]
    for name in some:
        save_file(tensors | {name: tensors[name] * 1.001 + 1e-3}, file)
        names.add(name_of(folder, family))
    assert len(names) == len(some) + 1


def test_large_files_are_not_read_whole(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(20_000_000), "b": torch.ones(3)}, file)
    assert file.stat().st_size > checkpoint.SMALL
    assert len(checkpoint.content(file)) < 10_000
