"""Temporal flickering: VBench's number by numpy, and the ends of its scale."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from s2flow.scorers import Clip
from s2flow.scorers.builtin import TemporalFlickering


def score(video: torch.Tensor) -> float | None:
    return TemporalFlickering().score(Clip.of(video, "a prompt"))["temporal_flickering"]


def test_equals_the_formula_in_numpy_on_random_video():
    frames = np.random.default_rng(0).integers(0, 256, (7, 33, 50, 3), dtype=np.uint8)
    maes = [np.mean(np.abs(a.astype(float) - b)) for a, b in pairwise(frames)]
    expected = (255.0 - np.mean(maes)) / 255.0
    assert score(torch.from_numpy(frames).float() / 255) == pytest.approx(expected, abs=1e-9)


def test_a_frozen_video_is_perfect_an_alternating_one_worst_a_single_frame_has_no_score():
    still = torch.rand(1, 16, 16, 3).expand(5, -1, -1, -1)
    assert score(still) == 1.0 and score(still[:1]) is None
    assert score(torch.arange(6).remainder(2).float()[:, None, None, None].expand(6, 8, 8, 3)) == 0
