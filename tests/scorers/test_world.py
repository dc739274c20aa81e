"""The oracle reads unseen captions at both sizes, and the scorer never guesses."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from s2flow.embedded import world as toy
from s2flow.embedded.render import render
from s2flow.errors import UserError
from s2flow.scorers import Clip
from s2flow.scorers.mask import measure
from s2flow.scorers.oracle import (
    COUNTS,
    SIZES,
    Oracle,
    answers,
    attributes,
    classes,
    features,
    load,
    read,
)
from s2flow.scorers.world import WorldAgreement, beside_renders, frechet_distance, renders
from s2flow.training.damage import broken, damage
from s2flow.training.oracle import accuracy, broken_accuracy, draw_scene
from s2flow.video import read_video

LOOKS = Path(__file__).parent / "looks"
CAPTIONS = toy.all_captions_cached(toy.MICRO)
RED = "a large red ball moves right on sand"


@pytest.fixture(scope="module")
def scorer() -> WorldAgreement:
    return WorldAgreement("micro")


def shown(text: str, count: int = 1, scale: int = 1, seed: int = 0) -> torch.Tensor:
    """One clip of a micro caption with `count` objects."""
    placed = draw_scene(CAPTIONS[text], count, random.Random(seed))
    return render([placed], 32 * scale, 48 * scale, 8)[0]


def score(scorer: WorldAgreement, video: torch.Tensor, prompt: str) -> dict[str, float | None]:
    return scorer.score(Clip.of(video, prompt))


@pytest.mark.parametrize(
    ("scale", "damaged", "least"), [(1, False, 0.95), (2, False, 0.95), (1, True, 0.92)]
)
def test_oracle_reads_held_out_captions(scorer, scale, damaged, least):
    found = accuracy(scorer.oracle, scale, clips=64, damaged=damaged, seed=123)
    assert set(found) == {*attributes(toy.MICRO), "count"}
    assert min(found.values()) >= least, found


def test_oracle_calls_broken_objects_broken(scorer):
    found = broken_accuracy(scorer.oracle, 2, clips=96, seed=125)
    assert min(found.values()) >= 0.7, found  # of damaged clips; the card has the figures


def test_whole_falls_as_the_object_breaks(scorer):
    scenes = toy.sample_scenes(toy.MICRO, 24, 3, "held_out")
    frames, _, iou = broken(scenes, 64, 96, 1, random.Random(0))
    clips = zip(frames.movedim(2, -1), scenes, strict=True)
    whole = [measure(scorer.mask, clip, scene)["whole"] for clip, scene in clips]
    assert np.corrcoef(whole, iou)[0, 1] > 0.8
    intact = [w for w, i in zip(whole, iou, strict=True) if i > 0.99]
    assert len(intact) > 2 and sum(intact) / len(intact) > 0.85


def test_debris_is_what_lies_beside_the_shape(scorer):
    scene = CAPTIONS["a large red ball stays still on sand"]
    placed = [draw_scene(scene, count, random.Random(0)) for count in (0, 1, 3)]
    clips = render(placed, 64, 96, 1)
    nothing, one, three = (measure(scorer.mask, clip, scene) for clip in clips)
    assert one["debris"] < 0.02 < 0.5 < three["debris"]
    assert three["whole"] < 0.6 < 0.85 < one["whole"]
    assert nothing == {"whole": 0, "debris": 0}


def test_several_objects_are_whole_where_the_caption_asks_for_them(scorer):
    scene = toy.all_captions_cached(toy.SMALL)["two large red balls stay still on grass"]
    video = render([toy.place(scene, random.Random(1))], 64, 96, 1)[0]
    assert measure(scorer.mask, video, scene)["whole"] > 0.8
    assert measure(scorer.mask, video, replace(scene, number=1))["whole"] < 0.7


def test_grid_sees_what_repeats_with_the_tokens():
    text = "a large red ball stays still over a cloudy sky"
    video = shown(text, scale=2)
    dots = 0.03 * torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    dotted = video + dots.repeat(8, 12)[None, :, :, None]
    other = video + dots[:6, :6].repeat(11, 16)[None, :64, :, None]
    grid = [beside_renders(v, CAPTIONS[text], 8)["grid"] for v in (video, other, dotted)]
    assert grid[0] < 1.5 and grid[1] < 1.5 and grid[2] > 2


def test_whole_orders_clips_as_the_eye_does(scorer):
    """60 looks at pairs of 24 clips, made with weights that are not shipped (looks/looks.json)."""
    of = json.loads((LOOKS / "looks.json").read_text())
    names = [c["clip"] for c in of["clips"]]
    wins = np.full((24, 24), 0.05)
    for left, right, answer in of["looks"]:
        i, j = names.index(left), names.index(right)
        share = {"L": 1.0, "R": 0.0, "=": 0.5}[answer]
        wins[i, j], wins[j, i] = wins[i, j] + share, wins[j, i] + 1 - share
    strength = np.ones(24)  # of Bradley and Terry, by their fixed point
    for _ in range(1000):
        met = (wins + wins.T) / (strength[:, None] + strength)
        strength = (wins.sum(1) - np.diag(wins)) / (met.sum(1) - np.diag(met))
        strength /= strength.mean()
    frames = [(read_video(LOOKS / c["clip"])[4:5], CAPTIONS[c["prompt"]]) for c in of["clips"]]
    whole = [measure(scorer.mask, *frame)["whole"] for frame in frames]
    assert pd.Series(whole).rank().corr(pd.Series(strength).rank()) >= 0.7


def test_right_caption_agrees_and_wrong_captions_agree_less(scorer):
    texts = toy.held_out_captions(toy.MICRO, 6, seed=5)
    videos = [shown(text, scale=2) for text in texts]
    right, wrong = (
        [score(scorer, v, t)["world_agreement"] for v, t in zip(videos, of, strict=True)]
        for of in (texts, texts[1:] + texts[:1])
    )
    assert sum(right) / 6 >= 0.95 and sum(wrong) / 6 <= 0.5


def test_one_wrong_word_costs_its_own_attribute_and_no_object_all_of_the_object(scorer):
    scores = score(scorer, shown(RED), "a large blue ball moves right on sand")
    assert scores["world_colour"] == 0.0
    assert scores["world_agreement"] == pytest.approx(0.8)
    empty = shown(RED, count=0)
    scores = score(scorer, empty, RED)
    assert torch.equal(empty[0], empty[7])  # the background alone
    assert scores["world_agreement"] == pytest.approx(0.2)
    assert scores["world_background"] == 1.0


def test_objects_are_counted_one_by_one_as_in_a_batch(scorer):
    texts = toy.held_out_captions(toy.MICRO, 16, seed=6)
    for count in COUNTS:
        videos = torch.stack([shown(t, count, seed=k) for k, t in enumerate(texts)])
        seen = answers(scorer.oracle, videos)
        assert sum(a["count"] == count for a in seen) >= 14, seen
        assert answers(scorer.oracle, videos[3:4]) == seen[3:4]


@pytest.mark.parametrize(("count", "repeats"), [(0, 0.0), (1, 0.0), (2, 1.0), (3, 1.0)])
def test_repetition_is_more_than_one_object(scorer, count, repeats):
    text = "a large blue square stays still on grass"
    scores = score(scorer, shown(text, count), text)
    assert (scores["object_count"], scores["repetition"]) == (count, repeats)


def test_frechet_distance_of_gaussians_and_of_clips(scorer):
    a = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)).double()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 2) == pytest.approx(4 * 5, rel=1e-6)
    assert frechet_distance(a, 3 * a - 2 * a.mean(0)) == pytest.approx(
        4 * torch.cov(a.T).trace().item(), rel=1e-6
    )
    texts = toy.held_out_captions(toy.MICRO, 24, seed=9)
    true = features(scorer.oracle, renders(texts, toy.MICRO, (8, 32, 48), each=2))
    again = features(scorer.oracle, (shown(t, seed=70) for t in texts))
    several = features(scorer.oracle, (shown(t, 3, seed=70) for t in texts))
    assert true.shape == (48, 128)
    assert frechet_distance(again, true) < 0.4 * frechet_distance(several, true)
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(true[:1], true)


def test_prompt_outside_of_the_world_is_not_scored(scorer):
    for prompt in ("a panda drinks coffee", "a small red ball moves right on sand", ""):
        scores = score(scorer, shown(RED), prompt)
        assert scores.pop("object_count") == 1.0
        assert set(scores.values()) == {None}
        assert len(scores) == len(attributes(toy.MICRO)) + 6


def test_detail_is_near_one_for_renders_and_falls_with_blur():
    detail = []
    for k, text in enumerate(toy.held_out_captions(toy.MICRO, 8, seed=7)):
        sharp = shown(text, scale=2, seed=50 + k)
        soft = torch.nn.functional.avg_pool2d(sharp.movedim(-1, 1), 5, 1, 2).movedim(1, -1)
        detail.append([beside_renders(v, CAPTIONS[text], 8)["detail"] for v in (sharp, soft)])
    assert sum(sharp for sharp, _ in detail) / 8 == pytest.approx(1.0, abs=0.2)
    assert all(soft < 0.7 * sharp for sharp, soft in detail)


def test_any_resolution_and_length_is_read(scorer):
    text = "a large yellow star moves down before a brick wall"
    scene = draw_scene(CAPTIONS[text], 1, random.Random(0))
    for height, width, frames in ((64, 96, 13), (96, 144, 5)):
        video = render([scene], height, width, frames)[0]
        assert score(scorer, video, text)["world_agreement"] == 1.0


def test_damage_keeps_the_picture_recognisable_and_is_repeatable():
    video = shown("a large red ball stays still on grass").movedim(-1, 1)[None]
    first, again = (damage(video, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert 0.005 < (first - video).abs().mean() < 0.15


def test_missing_or_unknown_oracle_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr("s2flow.scorers.oracle.WEIGHTS", tmp_path)
    with pytest.raises(UserError, match="python -m s2flow.training oracle tiny"):
        load("tiny")
    with pytest.raises(ValueError, match="micro, small, tiny"):
        load("huge")


def test_the_larger_world_fits_the_same_network():
    size = SIZES["tiny"]
    scenes = toy.sample_scenes(toy.TINY, 1, seed=0)
    logits = Oracle(size).eval()(read(render(scenes, 96, 144, 8), size))
    assert {k: v.shape[1] for k, v in logits.items()} == {
        k: len(v) for k, v in classes(toy.TINY).items()
    }
