"""Clips from elsewhere are scored as ours are, and VBench's own results are attached to a run."""

import json
import math
import subprocess
import sys
from statistics import fmean

import numpy as np
import pytest
from finished import encoded, finished_run
from test_score import ROOT, config

from s2flow.errors import UserError
from s2flow.metrics import bootstrap_interval
from s2flow.scorers.builtin import TemporalFlickering
from s2flow.scorers.score import score
from s2flow.scorers.vbench import DIMENSIONS, VBench
from s2flow.store import load_records, read_run
from s2flow.store.__main__ import main as store
from s2flow.store.scorebook import ScoreBook

PROMPTS = [("a cat", 0), ("a cat", 5), ("a dog", 0)]


@pytest.fixture
def run(tmp_path):
    return finished_run(tmp_path / "runs", PROMPTS)


def attach(run, results, *words, name="x_eval_results.json"):
    """`vbench_results=` of this content for a run."""
    file = run.parent.parent / name
    file.write_text(results if isinstance(results, str) else json.dumps(results))
    score(config(run.parent, f"vbench_results={file}", f"runs=[{run.name}]", *words))


def entries(values):
    return [{"video_path": f"/gone/{k}.mp4", "video_results": v} for k, v in values.items()]


def attached(run):
    """(prompt, seed) -> scores."""
    return {(r["prompt"], r["seed"]): r["scores"] for r in read_run(run)}


# -- clips from elsewhere -----------------------------------------------------------------------


def test_a_folder_and_a_list_typed_as_they_are_give_scores_with_n_and_an_interval(tmp_path):
    videos = tmp_path / "my (own), clips=1"
    videos.mkdir()
    for i in range(3):
        (videos / f"000{i + 1}.mp4").write_bytes(encoded(kind=i))
    listed = tmp_path / "a list, of {mine}.txt"
    listed.write_text("a large red ball moves left on grass\nb\nc\n")
    words = (f"videos={videos}", f"prompts={listed}", f"runs_dir={tmp_path / 'runs'}")
    command = (sys.executable, "-m", "s2flow.score", *words)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        0,
        "",
    )  # no word about a world that was not asked for
    (run,) = (tmp_path / "runs").iterdir()
    scores = [s["temporal_flickering"] for s in attached(run).values()]
    low, high = bootstrap_interval(np.array(scores))
    line = next(x for x in done.stdout.splitlines() if "temporal_flickering" in x)
    found = line.replace(" to ", " ").split()[2:6]
    assert [float(x) for x in found[1:3]] == pytest.approx([low, high], abs=2e-3)
    assert found[0] == f"{fmean(scores):.4f}" and found[3] == "3"
    assert {n for s in attached(run).values() for n in s} == set(TemporalFlickering.names)


def test_the_world_s_scorer_runs_where_it_is_asked_for_and_the_prompt_is_a_caption(tmp_path):
    (tmp_path / "v").mkdir()
    for name in ("a large red ball moves left on grass", "a cat"):
        (tmp_path / "v" / f"{name}-0.mp4").write_bytes(encoded(frames=8))
    score(config(tmp_path / "runs", f"videos={tmp_path / 'v'}", "scorer.world.size=micro"))
    ((run),) = (tmp_path / "runs").iterdir()
    agreed = {text: s["world_agreement"] for (text, _), s in attached(run).items()}
    assert agreed["a cat"] is None and agreed["a large red ball moves left on grass"] is not None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("videos=nowhere",), "videos=nowhere: No such file"),
        (("videos=nowhere", "runs=[0123456789]"), "leave runs= out"),
        (("prompts.file=p.txt",), "videos=FOLDER"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, words, told):
    with pytest.raises(UserError, match=told):
        score(config(tmp_path / "runs", *words))
    assert not (tmp_path / "runs").exists()


# -- VBench's results ---------------------------------------------------------------------------


def test_every_video_s_score_lands_on_its_clip_in_our_unit_with_its_source(run):
    flicker = {"a cat-0": 0.9, "a cat-1": 0.8, "a dog-0": 0.7}  # index: seed order
    image = {k: 100 * v for k, v in flicker.items()}
    both = {
        "temporal_flickering": [0.8, entries(flicker)],
        "imaging_quality": [0.8, entries(image)],
    }
    attach(run, both)
    names = ("temporal_flickering", "imaging_quality")
    expected = dict(zip(PROMPTS, (0.9, 0.8, 0.7), strict=True))
    assert attached(run) == {
        c: dict.fromkeys(names, pytest.approx(v)) for c, v in expected.items()
    }
    frame = load_records(run.parent)
    assert frame["score_imaging_quality"].mean() == pytest.approx(0.8)
    verdicts = ScoreBook(run).verdicts()
    assert {v["scorer"] for v in verdicts} == {f"vbench.{name}" for name in names}
    assert {v["depends"]["file"] for v in verdicts} == {"x_eval_results.json"}
    attach(run, both)
    assert len(list(ScoreBook(run).folder.iterdir())) == 1  # nothing was written again


def test_our_own_names_and_an_exported_folder_match_too(run):
    by_key = {r["video"][6:-4]: r["seed"] / 10 for r in read_run(run)}
    attach(run, {"aesthetic_quality": [0, entries(by_key)]})
    out = run.parent.parent / "out"
    assert store(["export", str(run), "--vbench", str(out)]) == 0
    there = [{"video_path": str(p), "video_results": 0.25} for p in out.iterdir()]
    attach(run, {"motion_smoothness": [0.25, there]})
    for (_, seed), scores in attached(run).items():
        assert scores == {"aesthetic_quality": seed / 10, "motion_smoothness": 0.25}


def test_a_video_that_still_lies_there_with_other_content_is_another_clip(run, tmp_path):
    (tmp_path / "a cat-0.mp4").write_bytes(encoded(kind=3))
    here = {"video_path": str(tmp_path / "a cat-0.mp4"), "video_results": 0.1}
    with pytest.raises(UserError, match="1 videos of .* are no clips of .*: 'a cat-0.mp4'"):
        attach(run, {"temporal_flickering": [0.5, [here, *entries({"a dog-0": 0.9})]]})
    assert attached(run) == {  # the others are attached
        ("a cat", 0): {},
        ("a cat", 5): {},
        ("a dog", 0): {"temporal_flickering": 0.9},
    }


def test_a_second_file_adds_its_clips_and_replaces_only_those(run):
    attach(run, {"temporal_flickering": [0, entries({"a cat-0": 0.1, "a cat-1": 0.2})]})
    second = entries({"a cat-1": 0.5, "a dog-0": math.nan})
    with pytest.raises(UserError, match="1 nan"):
        attach(run, {"temporal_flickering": [0, second]}, name="second.json")
    values = {c: s["temporal_flickering"] for c, s in attached(run).items()}
    assert values == dict(zip(PROMPTS, (0.1, 0.5, None), strict=True))
    assert load_records(run.parent)["metrics"].nunique() == 1  # one row of a table


@pytest.mark.parametrize(
    ("results", "told"),
    [
        ("{", "is no JSON"),
        ("[1]", "holds none of temporal_flickering"),
        ({"dynamic_degree": [1, []]}, "holds none of temporal_flickering"),
        ({"imaging_quality": 3}, "not as VBench writes it"),
        ({"imaging_quality": [0.5, entries({"a cat-0": True})]}, "is True"),
        ({"imaging_quality": [0.6, entries({"a cat-0": 0.6})]}, "states the mean 0.6"),  # on 0-1
        ({"aesthetic_quality": [0.6, entries({"a cat-0": 60})]}, "is on 0-1"),
        (
            {"aesthetic_quality": [0, entries({"a cat-0": 1, "../a cat-0": 0})]},
            "one clip of the run",
        ),
        (
            {"aesthetic_quality": [0, entries({"a cat-0": 1}) + entries({"a cat-0": 0})]},
            "two values",
        ),
    ],
)
def test_a_file_that_vbench_did_not_write_is_refused_before_anything_is_attached(
    run, results, told
):
    with pytest.raises(UserError) as refused:
        attach(run, results)
    assert told in str(refused.value) and not (run / "scores").exists()


def test_no_file_and_more_than_one_run_are_refused(run):
    with pytest.raises(UserError, match="No such file"):
        score(config(run.parent, "vbench_results=nowhere.json"))
    finished_run(run.parent, 1, run_id="ffffffffff")
    with pytest.raises(UserError, match=r"scores one run, .* type runs=\[0123456789\]"):
        score(config(run.parent, "vbench_results=nowhere.json"))


def test_the_scorers_are_named_as_those_that_compute_the_dimensions_here(run):
    attach(run, {name: [0.5, entries({"a dog-0": 0.5})] for name in DIMENSIONS[:-1]})
    named = {(v["scorer"], *v["scores"]) for v in ScoreBook(run).verdicts()}
    ours = VBench(DIMENSIONS[:-1]).parts()
    assert named == {(name, *scorer.names) for name, scorer in ours.items()}
