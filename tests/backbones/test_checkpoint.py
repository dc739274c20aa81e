"""Real checkpoints through run.py: a clip, a resume, and one line for whatever cannot be opened."""

import functools
import json
import shutil
import time

import pytest
import torch
from conftest import FACTS
from safetensors.torch import load_file, save_file
from test_cli import refusal, run_here
from test_runner import state

from s2flow.backbones import checkpoint, wan
from s2flow.backbones.base import Origin
from s2flow.process import loading
from s2flow.store import read_run

SMALL = ("low=[32,48]", "high=[64,96]", "frames=5", "steps=3", "t_i=2", "device=cpu")
SMALL += ("brick_low=[1,1,1]", "brick_high=[1,2,2]", "backbone.dtype=float32", "prompts.count=2")
pytestmark = pytest.mark.usefixtures("fresh")


def of(*names):
    """The families that a test is about."""
    return pytest.mark.parametrize("family", names, indirect=True)


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


@pytest.fixture(params=["wan", "hunyuan"])
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
        usual = [f"backbone={FACTS[family][0]}", f"backbone.source={folder}", *SMALL]
        usual += ["low=[64,96]", "high=[128,192]"] if family == "wan_2_2_5b" else []
        return command(*{word.partition("=")[0]: word for word in (*usual, *words)}.values())

    return run


@pytest.fixture
def refused(typed, folder, capsys):
    """refused(said, *words): these words cost one line, which holds every word of `said`."""

    def check(said, *words):
        line = refusal(typed(*words), capsys)
        for word in said.split():
            assert word in line, line

    return check


def records(tmp_path):
    folders = sorted(p.parent for p in tmp_path.glob("runs/*/records"))
    return [record for folder in folders for record in read_run(folder)]


def name_of(folder, family):
    return FACTS[family][1].identity(Origin("x", str(folder)))


# -- the whole of run.py ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """The record of a clip of the embedded backbone."""
    place = tmp_path_factory.mktemp("embedded")
    with pytest.MonkeyPatch.context() as patch:
        words = ("steps=3", "t_i=2", "frames=2", "prompts.count=1", "scorer=[builtin]")
        assert run_here(patch, place, *words) == 0
    return records(place)[0]


@of(*FACTS)
def test_run_makes_clips_resumes_and_records_what_the_embedded_backbone_does(
    typed, family, folder, tmp_path, monkeypatch, embedded
):
    assert typed("batch=2") == 0
    made = records(tmp_path)
    assert len(made) == 2 and all(r["status"] == "ok" for r in made)
    for r in made:
        k = 2 if family == "wan_2_2_5b" else 1
        assert (r["frames"], r["height"], r["width"]) == (5, k * 64, k * 96)
        assert r["recipe"]["weights"] == name_of(folder, family)
        assert r["source"] == str(folder) and r["revision"] is None and r["dtype"] == "float32"
        assert (tmp_path / "runs" / r["run_id"] / r["video"]).stat().st_size == r["bytes"]
        assert set(r) == set(embedded)
        more = {"guidance_2"} if family == "wan_2_2_14b" else set()
        assert set(r["recipe"]) == set(embedded["recipe"]) | more
        for field in ("seconds", "versions", "scores"):
            assert set(r[field]) == set(embedded[field])
    before = state(tmp_path / "runs")
    monkeypatch.setattr(loading, "load_backbone", None)  # not even loaded
    assert typed("batch=1") == 0
    assert state(tmp_path / "runs") == before


@of("wan")
def test_the_models_type_is_part_of_the_run(typed, folder, tmp_path):
    half = wan.from_origin(Origin("x", str(folder), dtype="bfloat16"), "cpu")
    assert half.transformer.dtype == torch.bfloat16 == half.pipeline.text_encoder.dtype
    assert half.vae.dtype == torch.float32
    for dtype in ("bfloat16", "float32"):
        assert typed("prompts.count=1", "method=native", f"backbone.dtype={dtype}") == 0
    found = records(tmp_path)
    assert {(r["dtype"], r["recipe"].get("dtype")) for r in found} == {
        ("bfloat16", "bfloat16"),
        ("float32", None),  # is not written
    }
    assert len({r["run_id"] for r in found}) == 2


@of("wan_2_2_14b")
def test_both_guidances_are_part_of_the_run(typed, tmp_path):
    for word in ("guidance_2=3", "guidance_2=3.0", "guidance_2=2"):
        assert typed(word, "prompts.count=1", "method=native") == 0
    found = {r["run_id"]: r["recipe"]["guidance_2"] for r in records(tmp_path)}
    assert sorted(found.values()) == [2.0, 3.0]


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


def index(folder, **values):
    change(folder / "model_index.json", **values)


BROKEN = {  # what happened to the folder -> what the line must say
    "is empty": (lambda f: [shutil.rmtree(f), f.mkdir()], "no checkpoint model_index.json type"),
    "is no JSON": (lambda f: (f / "model_index.json").write_text("{"), "model_index.json JSON"),
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
EXPERTS = {  # the same of two experts, which come together or not at all
    "lost the second's folder": (lambda f: shutil.rmtree(f / "transformer_2"), "lacks the folder"),
    "has half of the second": (lambda f: cut(f, "transformer_2"), "transformer_2 truncated"),
}
INDEX = [  # family, key and value of model_index.json, what the line must say
    ("wan", "_class_name", "FluxPipeline", "FluxPipeline choose another backbone="),
    ("hunyuan", "vae", ["diffusers", "AutoencoderKL"], "vae AutoencoderKL must be"),
    ("wan", "tokenizer", ["own", "Fast"], "tokenizer own.Fast must be diffusers or transformers"),
    ("hunyuan", "image_encoder", ["diffusers", "X"], "image_encoder does not know"),
    (
        "wan_2_2_14b",
        "transformer_2",
        [None, None],
        "boundary_ratio=0.875 lacks the part transformer_2; fetch",
    ),
    ("wan_2_2_14b", "boundary_ratio", None, "transformer_2, and no boundary_ratio"),
    (
        "wan_2_2_14b",
        "transformer_2",
        ["diffusers", "WanVACETransformer3DModel"],
        "transformer_2 WanVACETransformer3DModel must be a WanTransformer3DModel",
    ),
]


@pytest.mark.parametrize(("family", "key", "value", "said"), INDEX, indirect=["family"])
def test_an_index_that_cannot_be_used_costs_one_line(key, value, said, folder, refused):
    index(folder, **{key: value})
    refused(f"{said} {folder}")


CASES = [(("wan", "hunyuan")[i % 2], *case) for i, case in enumerate(BROKEN.values())]
CASES += [("wan_2_2_14b", *case) for case in EXPERTS.values()]


@pytest.mark.parametrize(
    ("family", "spoil", "said"), CASES, indirect=["family"], ids=[*BROKEN, *EXPERTS]
)
def test_a_folder_that_cannot_be_used_costs_one_line(spoil, said, folder, refused):
    spoil(folder)
    refused(f"{said} {folder}")


TYPED = [  # family, what is typed, what the line must say
    ("wan", "high=[1540,2560]", "high=[1540,2560] 16 type high=[1536,2560]"),
    ("wan", "low=[33,48]", "low=[33,48] 16 type low=[32,48]"),
    ("wan", "frames=118", "frames=118 4 plus 1 type frames=117"),
    ("wan", "backbone.dtype=int8", "backbone.dtype=int8 type float32|bfloat16|float16"),
    (
        "wan",
        "backbone.source=/no/folder",
        "backbone.source=/no/folder type backbone.source=FOLDER",
    ),
    ("wan", "backbone.source=null", "backbone.source not set type backbone.source=FOLDER"),
    ("hunyuan", "backbone.multiple=8", "backbone.multiple=8 have 16 type backbone.multiple=16"),
    (
        "hunyuan",
        "backbone.frame_step=1",
        "backbone.frame_step=1 have 4 type backbone.frame_step=4",
    ),
    ("hunyuan", "windows.dense_layers=[77]", "windows.dense_layers 77 layers 0.."),
    ("hunyuan", "negative_prompt=blurry", "negative_prompt=blurry leave negative_prompt out"),
    ("wan_2_2_14b", "backbone=wan_14b", "backbone.boundary=null, but these weights have 0.875"),
    (
        "wan_2_2_14b",
        "backbone=wan_14b guidance_2=3",
        "guidance_2=3.0 wan_14b has one model; leave guidance_2 out",
    ),
    (
        "wan_2_2_14b",
        "guidance=1 guidance_2=3",
        "guidance_2=3.0 no effect with guidance=1, type guidance_2=1",
    ),
    ("wan_2_2_14b", "guidance_2=inf", "guidance_2=inf is not finite; type guidance_2=3.0"),
]


@pytest.mark.parametrize(("family", "words", "said"), TYPED, indirect=["family"])
def test_a_mistake_gives_one_line_that_says_what_to_type(words, said, refused):
    refused(said, *words.split())


OTHERS = [  # backbone, another family's folder, what the line must say
    (
        "wan_2_2_14b",
        "wan",
        "backbone.boundary=0.875, but these weights have null choose another backbone=",
    ),
    ("wan_2_2_14b", "wan_2_2_5b", "backbone.multiple=16, but these weights have 32"),
    (
        "hunyuan_1_5",
        "hunyuan",
        "is a HunyuanVideoPipeline, and this backbone runs a HunyuanVideo15Pipeline",
    ),
    (
        "hunyuan",
        "hunyuan_1_5",
        "is a HunyuanVideo15Pipeline, and this backbone runs a HunyuanVideoPipeline",
    ),
]


@pytest.mark.parametrize(("family", "other", "said"), OTHERS, indirect=["family"])
def test_a_folder_of_another_model_is_refused(other, said, folders, refused):
    refused(said, f"backbone.source={folders[other]}")


def test_the_embedded_backbone_takes_no_other_weights(command, capsys):
    for word in ("backbone.source=/tmp", "backbone.dtype=bfloat16"):
        assert "backbone=micro ships with its weights" in refusal(command(word), capsys)


@of("hunyuan_1_5")
def test_a_guider_is_a_setting_and_an_odd_one_is_refused(folder, family, refused):
    first = name_of(folder, family)
    guider = folder / "guider" / "guider_config.json"
    change(guider, guidance_scale=2.0)  # ours is in the recipe
    assert name_of(folder, family) == first
    for key, value in (
        ("guidance_rescale", 0.7),
        ("use_original_formulation", True),
        ("start", 0.2),
    ):
        before = guider.read_text()
        change(guider, **{key: value})
        refused(f"guider has {key}={value} {folder}")
        guider.write_text(before)


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


PIN = "0123456789abcdef0123456789abcdef01234567"
HUB = "backbone.source=some-owner/some-model"


@of("wan")
def test_a_hub_name_without_network(refused, no_network, family):
    start = time.perf_counter()
    refused(f"{HUB} no network type backbone.source=FOLDER", HUB)
    assert time.perf_counter() - start < 30
    # a pinned commit needs none for its name, but for its weights
    origin = Origin("x", "some-owner/some-model", PIN)
    assert FACTS[family][1].identity(origin) == PIN[:12] and checkpoint.revision(origin) == PIN
    said = "some-owner/some-model cannot be fetched FOLDER"
    refused(said, HUB, f"backbone.revision={PIN}")


def test_what_was_fetched_before_runs_without_network(typed, no_network, folder, tmp_path):
    """The cache's own layout: refs/main names the commit, snapshots/<commit> is the folder."""
    repo = tmp_path / "hub" / "models--some-owner--some-model"
    shutil.copytree(folder, repo / "snapshots" / PIN)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(PIN)
    assert typed(HUB, "prompts.count=1", "method=native") == 0
    (record,) = records(tmp_path)
    assert record["recipe"]["weights"] == PIN[:12] and record["revision"] == PIN
    assert record["source"] == "some-owner/some-model"


# -- the name of a folder's weights -------------------------------------------------------------


def test_the_name_follows_the_content_and_not_the_place(folder, folders, family):
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


@of("wan_2_2_14b")
def test_the_second_expert_and_the_boundary_name_the_weights(folder, family):
    names = {name_of(folder, family)}
    index(folder, boundary_ratio=0.9)
    names.add(name_of(folder, family))
    file = weights(folder, "transformer_2")
    save_file({k: w * 1.001 for k, w in load_file(file).items()}, file)
    names.add(name_of(folder, family))
    assert len(names) == 3


@of("wan", "wan_2_2_5b")
def test_an_expert_that_is_null_does_not_name_them(folder, family):
    """As of folders that an older diffusers saved, which knew no second expert."""
    first = name_of(folder, family)
    old = (folder / "model_index.json").read_text()
    assert '"transformer_2"' in old and '"boundary_ratio": null' in old
    index(folder, transformer_2=None, boundary_ratio=None)
    assert name_of(folder, family) == first


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


@pytest.mark.parametrize("case", ["wan"], indirect=True)
def test_what_a_folder_says_is_checked_before_loading_and_by_a_plan(
    case, tmp_path, monkeypatch, capsys
):
    """Options of the noise grid are for method=native, whose steps the scheduler takes."""
    folder = shutil.copytree(case.folder, tmp_path / "wan")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_karras_sigmas": True}))
    words = ["backbone=wan_1_3b", f"backbone.source={folder}", "backbone.dtype=float32"]
    for more in ([], ["plan=true"]):
        line = refusal(run_here(monkeypatch, tmp_path, *words, *more), capsys)
        assert "has use_karras_sigmas=True, and method=s2flow" in line
