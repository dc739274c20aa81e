"""One recipe, the same latents: whatever the order, worker or cache; and reproduce= finds it again."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from finished import composed, fresh_flows, state
from hydra.core.override_parser.overrides_parser import OverridesParser
from safetensors.torch import load_file, save_file

from s2flow.errors import UserError
from s2flow.methods import method
from s2flow.process import loading
from s2flow.prompts import DEMO
from s2flow.recipe.resolve import resolve
from s2flow.run import runner
from s2flow.run.reproduce import STRICT_TOLERANCE, _recipe, within
from s2flow.store import clip_key, write_json
from s2flow.terminal.cli import literal

ROOT = Path(__file__).parents[2]
SMALL = ("steps=3", "t_i=2", "frames=2", "device=cpu", "scorer=[none]", "keep_latents=true")
KEYS = [clip_key(prompt, 0) for prompt in DEMO[:3]]
BATCH = 1e-4  # of the largest latent; measured: 6e-6 (steps=3), 1.4e-5 (20 steps without windows)


def config(runs_dir, *overrides):
    return composed(*SMALL, f"runs_dir={runs_dir}", *overrides)


def latents(runs_dir):
    """{key: final latent}."""
    return {p.stem: load_file(p)["latent"] for p in runs_dir.glob("*/latents/*")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three clips, one after the other: their runs folder."""
    runs = tmp_path_factory.mktemp("made") / "runs"
    before, loading.low_flows = loading.low_flows, fresh_flows()
    runner.run(config(runs, "prompts.count=3"))
    loading.low_flows = before
    return runs


# -- the same recipe, the same latents ----------------------------------------------------------


def test_latents_do_not_depend_on_worker_order_or_cache(made, tmp_path):
    """To the last bit: another process with other clips before, LR flows made, from disk, in memory."""
    reference = latents(made)
    assert set(reference) == set(KEYS)
    words = [*SMALL, f"runs_dir={tmp_path}/other", "prompts=file", "shard=2/2"]
    (tmp_path / "list.txt").write_text("\n".join(["a cat", DEMO[2], "a dog", DEMO[0]]))
    words += [f"prompts.file={tmp_path}/list.txt", f"threads={torch.get_num_threads()}"]
    command = [sys.executable, ROOT / "run.py", *words, f"hydra.run.dir={tmp_path}/diary"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    other = latents(tmp_path / "other")
    assert set(other) == {KEYS[0], KEYS[2]}
    (cache,) = tmp_path.glob("other/lr_cache")
    runner.run(config(tmp_path / "disk", "prompts.count=3", f"lr_cache_dir={cache}"))
    disk = latents(tmp_path / "disk")
    for found in (other, disk):
        for key, z in found.items():
            assert torch.equal(z, reference[key])


def test_latents_in_a_batch_differ_by_rounding(made, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "low_flows", fresh_flows())
    runner.run(config(tmp_path, "prompts.count=3", "batch=3"))
    for key, z in latents(tmp_path).items():
        reference = latents(made)[key]
        assert (z - reference).abs().max() < BATCH * reference.abs().max()


# -- reproduce= ---------------------------------------------------------------------------------


def test_a_clip_is_made_again_from_its_recipe_and_nothing_is_written(made, capsys):
    before = state(made)
    (run,) = (p.parent.name for p in made.glob("*/recipe.json"))
    found = runner.run(config(made, f"reproduce='{run}'", "steps=20", "sparsity=0.25"))
    assert found["same_bytes"] and found["psnr"] == 100 and found["within"]
    assert found["largest_latent_difference"] == found["largest_pixel_difference"] == 0
    assert found["clip"] == min(KEYS) and found["run_id"] == run
    assert "threads" not in found["differs"] and "batch" not in found["differs"]
    assert "the same bytes" in capsys.readouterr().out
    other = max(KEYS)
    assert runner.run(config(made, f"reproduce='{run}/{other}'"))["clip"] == other
    assert state(made) == before


def copied(runs, tmp_path):
    """The run's folder, to be spoiled."""
    (folder,) = (p.parent for p in runs.glob("*/recipe.json"))
    return Path(shutil.copytree(folder, tmp_path / folder.name))


def test_what_differs_is_reported_and_decides_the_exit_code(made, tmp_path, capsys):
    copy = copied(made, tmp_path)
    path = copy / "records" / f"{KEYS[0]}.json"
    record = json.loads(path.read_text())
    record |= {"threads": 64, "batch": 4, "versions": record["versions"] | {"torch": "1.0"}}
    write_json(path, record)
    latent = copy / "latents" / f"{KEYS[0]}.safetensors"
    z = load_file(latent)["latent"]
    save_file({"latent": z * 3}, latent)
    with pytest.raises(SystemExit) as stop:
        runner.run(config(tmp_path, f"reproduce='{copy.name}/{KEYS[0]}'"))
    assert stop.value.code == 1
    out = capsys.readouterr().out
    for said in ("OVER the tolerance", "threads: 64 then", "batch: 4 then", "torch: 1.0 then"):
        assert said in out
    cases = ((39.9, None, False), (40, None, True), (99, 0.02, False), (99, 0.01, True))
    for psnr, z, good in cases:
        assert within({"psnr": psnr, "largest_latent_difference": z}, STRICT_TOLERANCE) == good


REFUSED = {
    "abc": "reproduce=abc names no clip; type reproduce=RUN",
    "RUN/zzz": "/zzz names no clip; type reproduce=RUN",
    "0000000000": "has no run 0000000000; type runs_dir=",
    "RUN/0123456789abcdef": "has no clip 0123456789abcdef; type reproduce=RUN/CLIP",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_cannot_be_reproduced_is_refused(word, made):
    (run,) = (p.parent.name for p in made.glob("*/recipe.json"))
    with pytest.raises(UserError) as said:
        runner.run(config(made, f"reproduce='{word.replace('RUN', run)}'"))
    assert REFUSED[word] in str(said.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"weights": "feedfeedfeed"}, "weights feedfeedfeed of micro, .* type backbone.source="),
        ({"version": 0}, "is of recipe version 0, and this is 1"),
        ({"order": 3}, r"is now run [0-9a-f]{10}"),
        ({"novel": 1}, "is no recipe of this version"),
    ],
)
def test_a_recipe_that_is_not_this_ones_is_refused(changed, said, made, tmp_path):
    copy = copied(made, tmp_path)
    stored = json.loads((copy / "recipe.json").read_text())
    write_json(copy / "recipe.json", stored | changed)
    with pytest.raises(UserError, match=said):
        runner.run(config(tmp_path, f"reproduce='{copy.name}'"))


RECIPES = [
    (),
    ("windows=full", "solver=unipc"),
    ("windows=coverage", "handoff=noisy"),
    ("windows=inward", "order=1"),
    ("windows=moba", "density=per_axis", "noise=aligned", "adain=true"),
    ("solver=ab2", "temperature=auto", "rope=ntk", "shift_high=3"),
    ("method=native",),
    ("method=bicubic", "low=[24,40]"),
    ("method=hiflow", "method.alpha=0"),
    ("method=rectifiedhr", "guidance=2"),
    ("method=cascade", "scales=[1,1.5,2]", "t_i=null", "switches=[0.8,0.4]"),
    ("lr_time=snr", "upsample=nearest", "windows.dense_layers=[0,2]", "windows.dense_steps=1"),
    ("backbone=wan_2_2_14b", "steps=10", "t_i=5", "frames=5", "fp8=true", "vae_tile=[512,448]"),
]


@pytest.mark.parametrize("words", RECIPES, ids=" ".join)
def test_a_recipe_is_rebuilt_from_what_is_stored(words, tmp_path):
    cfg = config(tmp_path, *words)
    recipe = resolve(cfg, "weights", method(cfg.method.name).KNOBS)
    stored = json.loads(json.dumps(recipe.identity()))
    again = _recipe(stored, cfg.backbone, None)
    assert again.run_id == recipe.run_id and again.identity() == recipe.identity()


def test_a_run_id_that_looks_like_a_number_arrives_to_the_letter():
    parse = OverridesParser.create().parse_overrides
    words = ("12345e6789", "12345e6789/0123456789012345", "0123456789")
    for word in (*words, "12345e6789/zzz", "runs/1234567890"):
        assert parse([literal(f"reproduce={word}")])[0].value() == word
