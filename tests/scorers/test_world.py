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
from s2flow.scorers.oracle import COUNTS, SIZES, Oracle, answers, attributes, classes, load, read
from s2flow.scorers.world import (
    WorldAgreement,
    beside_renders,
    features,
    frechet_distance,
    lattice_power,
    renders,
)
from s2flow.training.damage import broken, damage
from s2flow.training.oracle import accuracy, broken_accuracy, draw_scene
from s2flow.video import read_video

LOOKS = Path(__file__).parent / "looks"


@pytest.fixture(scope="module")
def scorer() -> WorldAgreement:
    return WorldAgreement("micro")


def shown(text: str, count: int = 1, scale: int = 1, seed: int = 0) -> torch.Tensor:
    """One clip of a micro caption with `count` objects."""
    scene = toy.all_captions_cached(toy.MICRO)[text]
    placed = draw_scene(scene, count, random.Random(seed))
    return render([placed], 32 * scale, 48 * scale, 8)[0]


def score(scorer: WorldAgreement, video: torch.Tensor, prompt: str) -> dict[str, float | None]:
    return scorer.score(Clip.of(video, prompt, 0, Path("runs")))


@pytest.mark.parametrize("scale", [1, 2])
def test_oracle_reads_held_out_captions(scorer, scale):
    found = accuracy(scorer.oracle, scale, clips=96, seed=123)
    assert set(found) == {*attributes(toy.MICRO), "count"}
    assert min(found.values()) >= 0.95, found


def test_oracle_reads_damaged_clips(scorer):
    found = accuracy(scorer.oracle, 1, clips=96, damaged=True, seed=124)
    assert min(found.values()) >= 0.92, found


def test_oracle_calls_broken_objects_broken(scorer):
    found = broken_accuracy(scorer.oracle, 2, clips=160, seed=125)
    assert min(found.values()) >= 0.7, found  # of damaged clips; the card has the figures


def test_whole_falls_as_the_object_breaks(scorer):
    scenes = toy.sample_scenes(toy.MICRO, 48, 3, "held_out")
    frames, _, iou = broken(scenes, 64, 96, 8, random.Random(0))
    whole = [
        measure(scorer.mask, clip.movedim(1, -1), scene)["whole"]
        for clip, scene in zip(frames, scenes, strict=True)
    ]
    assert np.corrcoef(whole, iou)[0, 1] > 0.8
    intact = [w for w, i in zip(whole, iou, strict=True) if i > 0.99]
    assert len(intact) > 5 and sum(intact) / len(intact) > 0.85


def test_debris_is_what_lies_beside_the_shape(scorer):
    text = "a large red ball stays still on sand"
    one, three = (score(scorer, shown(text, count, scale=2), text) for count in (1, 3))
    assert one["debris"] < 0.02 < 0.5 < three["debris"]
    assert three["whole"] < 0.6 < 0.85 < one["whole"]
    nothing = score(scorer, shown(text, 0, scale=2), text)
    assert nothing["whole"] == 0 and nothing["debris"] == 0


def test_several_objects_are_whole_where_the_caption_asks_for_them(scorer):
    text = "two large red balls stay still on grass"
    scene = toy.all_captions_cached(toy.SMALL)[text]
    video = render([toy.place(scene, random.Random(1))], 64, 96, 8)[0]
    assert measure(scorer.mask, video, scene)["whole"] > 0.8
    assert measure(scorer.mask, video, replace(scene, number=1))["whole"] < 0.7


def test_grid_sees_what_repeats_with_the_tokens():
    text = "a large red ball stays still over a cloudy sky"
    scene = toy.all_captions_cached(toy.MICRO)[text]
    video = shown(text, scale=2)
    dots = 0.03 * torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    dotted = video + dots.repeat(8, 12)[None, :, :, None]
    assert beside_renders(video, scene, 8)["grid"] < 1.5
    assert beside_renders(dotted, scene, 8)["grid"] > 2
    assert lattice_power(video + dots[:6, :6].repeat(11, 16)[None, :64, :, None], 8) < 1.5


def test_whole_orders_clips_as_the_eye_does(scorer):
    """60 looks at pairs of 24 clips, made with weights that are not shipped (looks/looks.json)."""
    of = json.loads((LOOKS / "looks.json").read_text())
    names = [c["clip"] for c in of["clips"]]
    wins = np.full((24, 24), 0.05)
    for left, right, answer in of["looks"]:
        pair = names.index(left), names.index(right)
        for winner, share in zip(
            (pair, pair[::-1]), {"L": (1, 0), "R": (0, 1), "=": (0.5, 0.5)}[answer], strict=True
        ):
            wins[winner] += share
    strength = np.ones(24)  # of Bradley and Terry, by their fixed point
    for _ in range(1000):
        met = (wins + wins.T) / (strength[:, None] + strength)
        strength = (wins.sum(1) - np.diag(wins)) / (met.sum(1) - np.diag(met))
        strength /= strength.mean()
    captions = toy.all_captions_cached(toy.MICRO)
    whole = [
        measure(scorer.mask, read_video(LOOKS / c["clip"]), captions[c["prompt"]])["whole"]
        for c in of["clips"]
    ]
    assert pd.Series(whole).rank().corr(pd.Series(strength).rank()) >= 0.7


def test_right_caption_agrees_and_wrong_captions_agree_less(scorer):
    texts = toy.held_out_captions(toy.MICRO, 12, seed=5)
    videos = [shown(text, scale=2) for text in texts]
    right = [score(scorer, v, t)["world_agreement"] for v, t in zip(videos, texts, strict=True)]
    turned = texts[1:] + texts[:1]
    wrong = [score(scorer, v, t)["world_agreement"] for v, t in zip(videos, turned, strict=True)]
    assert sum(right) / 12 >= 0.95
    assert sum(wrong) / 12 <= 0.5


def test_one_wrong_word_costs_its_own_attribute(scorer):
    video = shown("a large red ball moves right on sand")
    scores = score(scorer, video, "a large blue ball moves right on sand")
    assert scores["world_colour"] == 0.0
    assert scores["world_agreement"] == pytest.approx(0.8)


@pytest.mark.parametrize("count", COUNTS)
def test_objects_are_counted(scorer, count):
    texts = toy.held_out_captions(toy.MICRO, 16, seed=6)
    counted = [
        score(scorer, shown(t, count, seed=k), t)["object_count"] for k, t in enumerate(texts)
    ]
    assert sum(c == count for c in counted) >= 14, counted


@pytest.mark.parametrize(("count", "repeats"), [(0, 0.0), (1, 0.0), (2, 1.0), (3, 1.0)])
def test_repetition_is_more_than_one_object(scorer, count, repeats):
    text = "a large blue square stays still on grass"
    assert score(scorer, shown(text, count), text)["repetition"] == repeats


def test_frechet_distance_of_gaussians_and_of_clips(scorer):
    a = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)).double()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 2) == pytest.approx(4 * 5, rel=1e-6)
    assert frechet_distance(a, 3 * a - 2 * a.mean(0)) == pytest.approx(
        4 * torch.cov(a.T).trace().item(), rel=1e-6
    )
    texts = toy.held_out_captions(toy.MICRO, 24, seed=9)
    true = features(scorer.oracle, renders(texts, toy.MICRO, (8, 64, 96), each=2))
    again = features(scorer.oracle, (shown(t, scale=2, seed=70) for t in texts))
    several = features(scorer.oracle, (shown(t, 3, scale=2, seed=70) for t in texts))
    assert true.shape == (48, 128)
    assert frechet_distance(again, true) < 0.4 * frechet_distance(several, true)
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(true[:1], true)


def test_no_object_means_no_agreement_on_the_object(scorer):
    text = "a large red ball moves right on sand"
    scores = score(scorer, shown(text, count=0), text)
    assert scores["world_agreement"] == pytest.approx(0.2)
    assert scores["world_background"] == 1.0


def test_prompt_outside_of_the_world_is_not_scored(scorer):
    video = shown("a large red ball moves right on sand")
    for prompt in ("a panda drinks coffee", "a small red ball moves right on sand", ""):
        scores = score(scorer, video, prompt)
        assert scores.pop("object_count") == 1.0
        assert set(scores.values()) == {None}
        assert len(scores) == len(attributes(toy.MICRO)) + 6


def test_detail_is_near_one_for_renders_and_falls_with_blur():
    texts = toy.held_out_captions(toy.MICRO, 8, seed=7)
    sharp, soft = [], []
    for k, text in enumerate(texts):
        video = shown(text, scale=2, seed=50 + k)
        blurred = torch.nn.functional.avg_pool2d(video.movedim(-1, 1), 5, 1, 2).movedim(1, -1)
        scene = toy.all_captions_cached(toy.MICRO)[text]
        sharp.append(beside_renders(video, scene, 8)["detail"])
        soft.append(beside_renders(blurred, scene, 8)["detail"])
    assert sum(sharp) / 8 == pytest.approx(1.0, abs=0.2)
    assert all(b < 0.7 * a for a, b in zip(sharp, soft, strict=True))


def test_any_resolution_and_length_is_read(scorer):
    text = "a large yellow star moves down before a brick wall"
    scene = draw_scene(toy.all_captions_cached(toy.MICRO)[text], 1, random.Random(0))
    for height, width, frames in ((32, 48, 8), (64, 96, 13), (96, 144, 5)):
        video = render([scene], height, width, frames)[0]
        assert score(scorer, video, text)["world_agreement"] == 1.0


def test_clips_of_a_batch_do_not_influence_each_other(scorer):
    texts = toy.held_out_captions(toy.MICRO, 4, seed=8)
    videos = torch.stack([shown(text) for text in texts])
    alone = [answers(scorer.oracle, video[None])[0] for video in videos]
    assert answers(scorer.oracle, videos) == alone


def test_damage_keeps_the_picture_recognisable_and_is_repeatable():
    video = shown("a large red ball stays still on grass").movedim(-1, 1)[None]
    first, again = (damage(video, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert 0.005 < (first - video).abs().mean() < 0.15


def test_render_of_no_object_is_the_background():
    scene = replace(
        toy.all_captions_cached(toy.MICRO)["a large red ball grows on sand"], objects=()
    )
    video = render([scene, scene], 32, 48, 8)
    assert torch.equal(video[0, 0], video[1, 7])


def test_missing_or_unknown_oracle_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr("s2flow.scorers.oracle.WEIGHTS", tmp_path)
    with pytest.raises(UserError, match="python -m s2flow.training oracle tiny"):
        load("tiny")
    with pytest.raises(ValueError, match="micro, small, tiny"):
        load("huge")


def test_the_larger_world_fits_the_same_network():
    size = SIZES["tiny"]
    scenes = toy.sample_scenes(toy.TINY, 2, seed=0)
    logits = Oracle(size).eval()(read(render(scenes, 128, 192, 8), size))
    assert {k: v.shape[1] for k, v in logits.items()} == {
        k: len(v) for k, v in classes(toy.TINY).items()
    }
