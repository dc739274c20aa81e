"""Black, frozen and lost clips are told apart, and a video with NaN is written black."""

import math

import pytest
import torch

from s2flow.store.outcome import black_frames, frozen_frames, outcome
from s2flow.video import read_frames, to_bytes, write_video

LATENT = torch.zeros(1)


def moving(frames=5, height=32, width=48):
    """A bright square that moves over a grey gradient."""
    video = torch.linspace(0.1, 0.6, width).expand(frames, height, width).clone()
    for t in range(frames):
        video[t, 8:16, 4 * t : 4 * t + 8] = 0.9
    return video[..., None].expand(-1, -1, -1, 3).clone()


def test_an_ordinary_clip_is_ok():
    expected = {"outcome": "ok", "nan_share": 0, "black_frames": 0, "frozen_frames": 0}
    assert outcome(moving(), LATENT) == expected


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_one_lost_value_is_seen(lost):
    video = moving()
    video[2, 3, 4, 1] = lost
    found = outcome(video, LATENT)
    assert found["outcome"] == "nan" and found["nan_share"] == 1 / video.numel()
    assert outcome(moving(), torch.tensor([0, lost]))["outcome"] == "nan"


def test_black_is_told_from_dark():
    assert outcome(torch.rand(4, 32, 48, 3) * 0.04, LATENT)["outcome"] == "black"
    dark = torch.rand(4, 32, 48, 3) * 0.2
    assert outcome(dark, LATENT)["outcome"] == "ok"
    dark[:3] = 0
    found = outcome(dark, LATENT)
    assert found["outcome"] == "ok" and found["black_frames"] == 0.75
    assert found["frozen_frames"] == pytest.approx(2 / 3)


def test_frozen_is_told_from_slow():
    still = moving()[:1].expand(5, -1, -1, -1)
    assert outcome(still + 0.004 * torch.rand(5, 32, 48, 3), LATENT)["outcome"] == "frozen"
    slow = still.clone()
    slow[-1, 20, :3] += 0.1  # 3 of 1536 pixels
    assert outcome(slow, LATENT)["frozen_frames"] == 0.75
    assert frozen_frames(moving()[:1]) is None
    assert outcome(moving()[:1], LATENT)["outcome"] == "ok"


@pytest.mark.parametrize("kind", ["frozen", "black", "ok"])
def test_the_mp4_tells_the_same(kind, tmp_path):
    still = moving()[:1].expand(6, -1, -1, -1)
    write_video(tmp_path / "a.mp4", {"frozen": still, "black": still * 0, "ok": moving()}[kind], 8)
    frames = read_frames(tmp_path / "a.mp4")
    assert black_frames(frames) == (kind == "black") and frozen_frames(frames) == (kind != "ok")


def test_lost_values_are_written_black(tmp_path):
    video = torch.full((3, 32, 48, 3), 0.8)
    video[1], video[2, :, :24] = math.nan, math.inf
    assert to_bytes(video)[1].max() == to_bytes(video)[2, :, :24].max() == 0
    write_video(tmp_path / "a.mp4", video, 8)
    frames = read_frames(tmp_path / "a.mp4")
    assert frames[1].max() < 8 and frames[0].min() > 190 and frames[2, :, 32:].min() > 190
