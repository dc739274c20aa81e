"""The runner: complete records, one clip per text, failures that cost only themselves."""

import errno
import json
import time
from pathlib import Path

import pytest
import torch
from finished import composed, fresh_flows, state
from PIL import Image
from safetensors.torch import load_file

from s2flow import methods, solver
from s2flow.embedded import backbone as tiny
from s2flow.errors import UserError
from s2flow.flow import sigma_grid
from s2flow.process import loading
from s2flow.prompts import DEMO
from s2flow.run import job, runner
from s2flow.scorers.builtin import TemporalFlickering
from s2flow.scorers.fidelity import psnr
from s2flow.scorers.world import WorldAgreement
from s2flow.store import clip_key, load_records, sha256_of
from s2flow.store.tasks import clip_tasks
from s2flow.video import read_video

SMALL = ("steps=3", "t_i=2", "frames=2", "device=cpu")


def config(runs_dir, *overrides):
    return composed(*SMALL, f"runs_dir={runs_dir}", *overrides)


def names(folder, kind):
    return {p.name for p in folder.glob(f"*/{kind}/*")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two clips of the default method: (summary, its runs folder)."""
    runs_dir = tmp_path_factory.mktemp("made") / "runs"
    before, loading.low_flows = loading.low_flows, fresh_flows()
    yield runner.run(config(runs_dir, "prompts.count=2", "seed=5")), runs_dir
    loading.low_flows = before


# -- what a record holds ------------------------------------------------------------------------


def test_a_record_holds_everything(made):
    summary, runs_dir = made
    folder = runs_dir / summary["run_id"]
    recipe = json.loads((folder / "recipe.json").read_text())
    assert isinstance(recipe.pop("version"), int)
    assert summary["clips"] == summary["made"] == len(summary["records"]) == 2
    for place, record in enumerate(summary["records"]):
        assert record["status"] == "ok" and record["run_id"] == summary["run_id"]
        assert record["prompt"] == DEMO[place] and record["prompt_index"] == [place]
        assert record["seed"] == 5
        assert (record["frames"], record["height"], record["width"]) == (2, 64, 96)
        assert record["fps"] == 8
        path = folder / record["video"]
        assert path.name == clip_key(record["prompt"], 5) + ".mp4"
        assert record["sha256"] == sha256_of(path) and record["bytes"] == path.stat().st_size
        stored = folder / "records" / f"{path.stem}.json"
        seen = {k: v for k, v in record.items() if k not in ("scores", "scorers")}
        assert json.loads(stored.read_text(encoding="utf-8")) == seen  # scores have their book
        assert record["scores"]["temporal_flickering"] > 0
        assert set(record["scores"]) >= {"world_agreement", "object_count", "detail"}
        assert record["oov_rate"] == 0
        stages = {"text", "lr", "plan", "handoff", "hr", "decode", "write"}
        assert stages <= set(record["seconds"]) and stages <= set(record["peak_mib"])
        assert all(v >= 0 for v in record["seconds"].values())
        assert all(v > 1 for v in record["peak_mib"].values())
        assert record["versions"]["torch"] == torch.__version__
        assert {"python", "s2flow", "diffusers", "numpy"} <= set(record["versions"])
        assert record["device"].startswith("cpu")
        assert {"commit", "dirty", "host", "command", "threads", "batch"} <= set(record)
        assert record["recipe"] == recipe
        # noise levels and windows
        sigmas = [round(s, 8) for s in sigma_grid(3, recipe["shift"]).tolist()]
        assert record["sigmas"] == sigmas[::-1] and record["sigmas"][0] == 1
        assert record["sigma_handoff"] == sigmas[2]  # t_i=2 steps remain
        assert set(record["density"]) == {"2", "1"}
        assert record["windows"] == "adaptive" and record["density_requested"] == 0.5
        assert all(abs(f - 0.5) < 0.1 for f in record["density"].values())
        assert sum(record["window_histogram"].values()) % 2 == 0  # over both HR steps
        assert record["low_flow_reused"] is False
        # files that open
        assert read_video(path).shape == (2, 64, 96, 3)
        assert read_video(path.with_suffix(".low.mp4")).shape == (2, 32, 48, 3)
        with Image.open(folder / "sheets" / f"{path.stem}.png") as sheet:
            assert sheet.width > 2 * 192 and sheet.height > 2 * 128
    rows = load_records(runs_dir)
    assert set(rows["low"]) == {"32x48"} and set(rows["upsample"]) == {"bilinear"}
    assert len(rows) == 2 and (rows["seconds_total"] > rows["seconds_hr"]).all()
    assert rows["score_temporal_flickering"].notna().all()


# -- what is recorded is never made again -------------------------------------------------------


def test_the_second_runner_makes_nothing(made, monkeypatch):
    summary, runs_dir = made
    before = state(runs_dir)
    monkeypatch.setattr(loading, "load_backbone", None)  # not even loaded
    again = runner.run(config(runs_dir, "prompts.count=2", "seed=5", "batch=2"))
    assert again["made"] == 0 and again["records"] == summary["records"]
    assert state(runs_dir) == before


def test_what_is_lost_is_made_again_to_the_same_pixels(made, monkeypatch):
    summary, runs_dir = made
    record = summary["records"][1]
    video = runs_dir / summary["run_id"] / record["video"]
    video.write_bytes(video.read_bytes()[:-100])
    before = {k: v for k, v in state(runs_dir).items() if video.stem not in k}
    again = runner.run(config(runs_dir, "prompts.count=2", "seed=5"))
    assert again["made"] == 1 and again["records"][1]["sha256"] == record["sha256"]
    assert {k: v for k, v in state(runs_dir).items() if video.stem not in k} == before


def test_equal_texts_share_a_clip(tmp_path):
    (tmp_path / "list.txt").write_text("a red ball\na blue star\na red ball\n")
    words = ("method=bicubic", "scorer=[none]")
    source = ("prompts=file", f"prompts.file={tmp_path}/list.txt")
    summary = runner.run(config(tmp_path / "runs", *words, *source))
    assert summary["clips"] == summary["made"] == 2
    assert [r["prompt_index"] for r in summary["records"]] == [[0, 2], [1]]
    assert len(names(tmp_path / "runs", "records")) == 2
    assert runner.run(config(tmp_path / "runs", *words, "prompt=a red ball"))["made"] == 0


def test_seeds_make_so_many_clips_of_each_prompt(tmp_path):
    words = ("method=bicubic", "scorer=[none]", "prompts.count=2", "seed=3", "batch=3")
    cfg = config(tmp_path, *words)
    first = runner.run(cfg)
    cfg.seeds = 2
    both = runner.run(cfg)
    assert both["run_id"] == first["run_id"] and both["made"] == 2 and both["clips"] == 4
    made = [(r["prompt"], r["seed"]) for r in both["records"]]
    assert made == [(DEMO[0], 3), (DEMO[1], 3), (DEMO[0], 4), (DEMO[1], 4)]
    assert len({r["sha256"] for r in both["records"]}) == 4
    assert both["records"][:2] == first["records"]


def test_shards_split_prompts_and_keep_their_seeds_together(tmp_path):
    def shards(n, *words):
        return [clip_tasks(config(tmp_path, *words, f"shard={k + 1}/{n}")) for k in range(n)]

    assert sorted(t.prompt for s in shards(4, "prompts.count=6") for t in s) == sorted(DEMO)
    tasks = shards(2, "prompts.count=3", "seeds=2")
    assert [[(t.indices, t.seed) for t in shard] for shard in tasks] == [
        [((0,), 0), ((2,), 0), ((0,), 1), ((2,), 1)],
        [((1,), 0), ((1,), 1)],
    ]
    (one, two) = clip_tasks(config(tmp_path, "prompt=cat", "seeds=2"))
    assert (one.prompt, one.seed, two.seed) == ("cat", 0, 1)


def test_augmented_prompts_are_given_to_the_model_and_the_entry_to_scorers(tmp_path, monkeypatch):
    seen, score = [], TemporalFlickering.score
    noted = lambda s, clip: seen.append(clip.prompt) or score(s, clip)  # noqa: E731
    monkeypatch.setattr(TemporalFlickering, "score", noted)
    (tmp_path / "short.txt").write_text("a red ball\na blue star\na blue star\n")
    (tmp_path / "long.txt").write_text("a large red ball\na blue star\na large red ball\n")
    words = ("prompts=file", f"prompts.file={tmp_path}/short.txt", "scorer=[builtin]")
    words += (f"prompts.augmented={tmp_path}/long.txt", "method=bicubic", "batch=3")
    summary = runner.run(config(tmp_path / "runs", *words))
    red, star, other = summary["records"]  # one text, two entries: two clips, scored apart
    assert red["prompt"] == other["prompt"] == "a large red ball"
    assert (red["original_prompt"], other["original_prompt"]) == ("a red ball", "a blue star")
    assert "original_prompt" not in star and star["prompt"] == "a blue star"
    assert red["video"] != other["video"]
    assert sorted(seen) == ["a blue star", "a blue star", "a red ball"]
    assert Path(star["video"]).stem == clip_key("a blue star", 0)

    reference = ("scorer=[fidelity]", f"scorer.fidelity.reference='{summary['run_id']}'")
    others = runner.run(config(tmp_path / "runs", *words, *reference, "upsample=nearest"))
    assert all(r["scores"]["psnr"] > 0 for r in others["records"])
    assert runner.run(config(tmp_path / "runs", *words))["made"] == 0


# -- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
def test_a_failure_costs_only_itself(batch, monkeypatch, tmp_path, capsys):
    bicubic = methods.method("bicubic")
    generate = bicubic.generate

    def broken(cascade):
        if DEMO[1] in cascade.prompts:
            raise RuntimeError("deliberate [/x] failure\nwith a second line")
        return generate(cascade)

    monkeypatch.setattr(bicubic, "generate", broken)
    cfg = config(tmp_path, "method=bicubic", "prompts.count=3", "scorer=[none]", f"batch={batch}")
    with pytest.raises(UserError, match="1 of 3 clips failed, 2 are complete.*type cache=retry"):
        runner.run(cfg)
    shown = capsys.readouterr().err
    assert shown.count("FAILED") == 1 and "deliberate [/x] failure" in shown
    bad = clip_key(DEMO[1], 0)
    assert names(tmp_path, "failures") == {f"{bad}.json"}
    failure = json.loads(next(tmp_path.glob(f"*/failures/{bad}.json")).read_text())
    assert failure["status"] == "failed" and failure["prompt"] == DEMO[1]
    assert "deliberate" in failure["error"] and "Traceback" in failure["traceback"]
    assert names(tmp_path, "records") == {f"{clip_key(DEMO[i], 0)}.json" for i in (0, 2)}


def test_a_clip_that_is_no_number_is_an_outcome_not_a_crash(monkeypatch, tmp_path, capsys):
    """One clip of a batch loses its numbers at HR; the other one is as if it were alone."""
    words = ("steps=4", "t_i=3")  # as many as a cosine needs
    alone = runner.run(config(tmp_path / "alone", *words, "prompts.count=1"))
    taylor_step = solver.taylor_step

    def spoiled(z, *rest):
        z = taylor_step(z, *rest)
        if z.shape[-2] == 16:  # HR
            z[1:] = torch.nan
        return z

    monkeypatch.setattr(solver, "taylor_step", spoiled)
    cfg = config(tmp_path / "both", *words, "prompts.count=2", "batch=2")
    said = (
        "1 of 2 clips are NaN, first in the velocity of hr step n=2; try backbone.dtype=bfloat16"
    )
    with pytest.raises(UserError) as raised:
        runner.run(cfg)
    assert str(raised.value) == said
    summary = raised.value.summary
    whole, lost = summary["records"]
    assert (summary["failed"], whole["outcome"], lost["outcome"]) == (0, "ok", "nan")
    assert (whole["nan_share"], lost["nan_share"], lost["black_frames"]) == (0, 1, None)
    folder = Path(summary["folder"])
    same = (read_video(Path(f) / whole["video"]) for f in (folder, alone["folder"]))
    assert psnr(*same) > 40  # batches round in another order
    assert lost["status"] == "ok" and "nan" in capsys.readouterr().err
    assert read_video(folder / lost["video"]).max() == 0  # black, where bytes of NaN are anything
    assert lost["derivative_cosine"]["lri"] == {"2": None}
    with pytest.raises(UserError, match=said) as raised:
        runner.run(cfg)
    assert raised.value.summary["made"] == 0  # it is done, and not tried again

    method = methods.method("bicubic")
    generate = method.generate

    def one_number(run):  # of the latent alone
        made = generate(run)
        made.latent[0, 0, 0, 0, 0] = torch.nan
        return made

    monkeypatch.setattr(method, "generate", one_number)
    monkeypatch.setattr(loading, "low_flows", fresh_flows())  # the spoiled one is not shared
    with pytest.raises(UserError, match="1 of 1 clips are NaN.*vae_tile") as raised:
        runner.run(config(tmp_path, "method=bicubic", "scorer=[none]"))
    (record,) = raised.value.summary["records"]
    assert record["outcome"] == "nan" and record["nan_share"] == 0


def test_latents_are_kept_when_asked_for_and_change_nothing_else(made, tmp_path):
    summary, runs_dir = made
    words = ("prompts.count=1", "seed=5", "keep_latents=true")
    kept = runner.run(config(tmp_path, *words))
    assert kept["run_id"] == summary["run_id"]  # placement: the recipe does not know of it
    assert kept["records"][0]["sha256"] == summary["records"][0]["sha256"]
    (path,) = tmp_path.glob("*/latents/*")
    assert path.name == clip_key(DEMO[0], 5) + ".safetensors"
    latent = load_file(path)["latent"]
    assert latent.dtype == torch.float32 and latent.shape[-3:] == (2, 16, 24)
    assert not list(runs_dir.glob("*/latents"))
    with torch.no_grad():
        video = tiny.load("micro", "cpu").decode(latent[None])[0]
    assert psnr(video, read_video(Path(kept["folder"]) / kept["records"][0]["video"])) > 30


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_gives_one_line_and_loses_nothing(code, monkeypatch, tmp_path, capsys):
    write, calls = job.write_video, []

    def full(path, video, fps):
        calls.append(path)
        if len(calls) > 2:  # the second clip
            path.write_bytes(b"half")
            raise OSError(code, "No space left on device")
        write(path, video, fps)

    monkeypatch.setattr(job, "write_video", full)
    cfg = config(tmp_path, "method=bicubic", "prompts.count=3", "scorer=[none]")
    with pytest.raises(UserError, match=r"disk of runs_dir=.* is full; .* same command again"):
        runner.run(cfg)
    assert "FAILED" not in capsys.readouterr().err
    assert names(tmp_path, "records") == {f"{clip_key(DEMO[0], 0)}.json"}
    assert not list(tmp_path.rglob(".tmp-*"))
    before = state(tmp_path)
    monkeypatch.setattr(job, "write_video", write)
    assert runner.run(cfg)["made"] == 2
    assert before.items() <= state(tmp_path).items()


def test_a_reference_without_the_clip_says_what_to_do(tmp_path, capsys):
    cfg = config(tmp_path, "method=bicubic", "scorer=[fidelity]", "scorer.fidelity.reference=abc")
    with pytest.raises(UserError, match="1 of 1 clips lack scores; the reasons are in"):
        runner.run(cfg)
    assert "reference run abc has no clip" in capsys.readouterr().err


# -- what is shared and what is shown -----------------------------------------------------------


def test_methods_share_the_lr_flow_and_its_noise(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "low_flows", fresh_flows())
    reused, seconds = [], set()
    for method in ("bicubic", "cascade", "s2flow"):
        (record,) = runner.run(config(tmp_path, f"method={method}", "scorer=[none]"))["records"]
        reused.append(record["low_flow_reused"])
        seconds.add(record["seconds"]["lr"])  # reused or not, it is part of what a clip costs
    assert len(seconds) == 1 and min(seconds) > 0
    assert reused == [False, True, True]
    low = {sha256_of(path) for path in tmp_path.glob("*/clips/*.low.mp4")}
    assert len(low) == 1


def test_a_batch_is_timed_by_the_clip(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "low_flows", fresh_flows())
    monkeypatch.setattr(job, "contact_sheet", lambda path, *_: time.sleep(0.2) or path.touch())
    cfg = config(tmp_path, "method=bicubic", "prompts.count=2", "batch=2", "scorer=[none]")
    one, two = runner.run(cfg)["records"]
    for stage in ("text", "lr", "decode"):
        assert one["seconds"][stage] == two["seconds"][stage]
    assert min(one["seconds"]["write"], two["seconds"]["write"]) > 0.2  # each its own
    assert one["batch"] == two["batch"] == 2


def test_the_table_of_a_run(made, capsys):
    _, runs_dir = made
    summary = runner.run(config(runs_dir, "prompts.count=2", "seed=5"))
    out = capsys.readouterr().out
    for said in (summary["run_id"], "adaptive s=0.5", "K=2", "t_i=2/3", "2/2", "agree", "flicker"):
        assert said in out
    assert f"{summary['folder']}/clips" in out  # on one line, however long


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((), "s2flow, adaptive s=0.5, lri K=2, t_i=2/3"),
        (("density=per_axis", "order=3"), "s2flow, adaptive s=0.5³, lri K=3, t_i=2/3"),
        (("windows=full", "solver=ab2"), "s2flow, full, ab2, t_i=2/3"),
        (("windows=full", "solver=unipc"), "s2flow, full, unipc, t_i=2/3"),
        (("method=cascade",), "cascade, t_i=2/3"),
        (("method=native",), "native"),
    ],
)
def test_labels(overrides, words, recipe):
    assert recipe(*SMALL, *overrides).label == words


def test_a_device_that_torch_does_not_know():
    assert loading.device_here("cpu") == "cpu"
    assert loading.device_here("auto") in ("cpu", "cuda")
    with pytest.raises(UserError, match="device=gpu is unknown; type one of device=auto"):
        loading.device_here("gpu")


def test_recorded_clips_get_the_scores_they_lack_without_being_made_again(tmp_path):
    def job(*words):
        return runner.run(config(tmp_path, "prompts.count=1", "method=bicubic", *words))

    first = job("scorer=[none]")
    (record,) = first["records"]
    assert record["scores"] == {}
    path = Path(first["folder"]) / record["video"]
    before = path.stat().st_mtime_ns
    (again,) = job("scorer=[builtin]")["records"]
    assert again["scores"]["temporal_flickering"] > 0
    assert list(again["scorers"]) == ["builtin"]
    assert path.stat().st_mtime_ns == before
    (both,) = job("scorer=[world]")["records"]
    assert set(both["scores"]) > {"temporal_flickering", "world_agreement"}


def test_a_scorer_whose_definition_changed_scores_recorded_clips_again(tmp_path, monkeypatch):
    def job():
        cfg = config(tmp_path, "prompts.count=1", "method=bicubic", "scorer=[world]")
        (record,) = runner.run(cfg)["records"]
        return record["scorers"]["world"]["version"], record["scores"]["detail"]

    first = job()
    constant = lambda self, clip: dict.fromkeys(self.names, -1.0)  # noqa: E731
    monkeypatch.setattr(WorldAgreement, "score", constant)
    assert job() == first  # the same definition: what is recorded stands
    monkeypatch.setattr(WorldAgreement, "version", first[0] + 1)
    assert job() == (first[0] + 1, -1.0)
