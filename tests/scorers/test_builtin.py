"""Temporal flickering: VBench's number, by hand, by numpy, and through the clip."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from s2flow.scorers import Clip
from s2flow.scorers.builtin import TemporalFlickering, temporal_flickering


def score(video: torch.Tensor) -> float | None:
    clip = Clip.of(video, "a prompt", 0, Path("runs"))
    return TemporalFlickering().score(clip)["temporal_flickering"]


def test_equals_the_formula_in_numpy_on_random_video():
    frames = np.random.default_rng(0).integers(0, 256, (7, 33, 50, 3), dtype=np.uint8)
    pairs = [
        np.mean(np.abs(a.astype(np.float32) - b.astype(np.float32))) for a, b in pairwise(frames)
    ]
    expected = (255.0 - np.mean(np.array(pairs)).item()) / 255.0
    assert score(torch.from_numpy(frames).float() / 255) == pytest.approx(expected, abs=1e-6)


def test_equals_a_value_computed_by_hand():
    video = torch.zeros(3, 2, 2, 3)
    video[1, 0, 0, 0] = 120 / 255  # one of 12 values: MAE 10 up, then 10 + 5 down and up
    video[2, 1, 1, 2] = 60 / 255
    assert score(video) == pytest.approx((255 - (10 + 15) / 2) / 255, abs=1e-12)


def test_a_frozen_video_is_perfect_an_alternating_one_worst_a_single_frame_has_no_score():
    still = torch.rand(1, 16, 16, 3).expand(5, -1, -1, -1)
    assert score(still) == 1.0 and score(still[:1]) is None
    assert score(torch.arange(6).remainder(2).float()[:, None, None, None].expand(6, 8, 8, 3)) == 0


def test_faster_movement_scores_lower():
    ramp = torch.linspace(0, 1, 64).expand(16, 64)
    slow, fast = (torch.stack([ramp.roll(k * v, 1) for k in range(5)]) for v in (1, 4))
    assert temporal_flickering(slow[..., None].expand(-1, -1, -1, 3)) > temporal_flickering(
        fast[..., None].expand(-1, -1, -1, 3)
    )
