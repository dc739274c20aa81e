"""High-resolution scores see what they are named for: detail, doubling, seams, flicker."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from s2flow.errors import UserError
from s2flow.scorers import Clip
from s2flow.scorers.highres import (
    HighRes,
    _energy,
    high_frequency_flicker,
    high_frequency_gain,
    high_frequency_share,
    seams,
    spatial_repetition,
)
from s2flow.video import write_video


def grid(height=64, width=96):
    return torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")


def smooth(frames=3, height=64, width=96, seed=0):
    """Slow luminance (T, H, W): a few cycles per frame."""
    coarse = torch.rand(frames, 1, 5, 7, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[:, 0]


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def blobs(*centres, frames=2, radius=7):
    """Bright discs on a plain ground, (T, 64, 96)."""
    y, x = grid()
    frame = torch.full((64, 96), 0.3)
    for cy, cx in centres:
        frame[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = 0.8
    return frame.expand(frames, -1, -1)


# -- detail -----------------------------------------------------------------------------------


def test_a_resized_lr_clip_gains_nothing_and_a_sharp_one_does():
    sharp = (noise(2, 64, 96) * 0.1 + 0.5).clamp(0, 1)
    low = F.interpolate(sharp[:, None], (32, 48), mode="bicubic", antialias=True)[:, 0]
    resized = F.interpolate(low[:, None], (64, 96), mode="bicubic", antialias=True)[:, 0]
    assert high_frequency_gain(resized.clamp(0, 1), low.clamp(0, 1)) == pytest.approx(0, abs=0.01)
    assert high_frequency_gain(sharp, low) > 10
    half = resized + 0.5 * (sharp - resized)
    assert 0 < high_frequency_gain(half, low) < high_frequency_gain(sharp, low)
    blurred = F.avg_pool2d(resized[:, None], 5, 1, 2)[:, 0]
    assert high_frequency_gain(blurred, low) < 0


def test_gain_is_decibels_of_energy_above_the_nyquist_frequency_of_lr():
    """A wave above the cut counts, on either axis; ten times its energy is 10 dB more."""
    low = smooth(2, 32, 48)
    base = F.interpolate(low[:, None], (64, 96), mode="bicubic")[:, 0] * 0.5 + 0.25
    plain = high_frequency_gain(base, low)
    for axis in grid():
        above = torch.cos(2 * math.pi * 0.4 * axis)
        weak, strong = (high_frequency_gain(base + a * above, low) for a in (0.05, 0.05 * 10**0.5))
        assert strong - weak == pytest.approx(10, abs=0.1) and weak > 10
        below = torch.cos(2 * math.pi * 0.15 * axis)
        assert high_frequency_gain(base + 0.1 * below, low) == pytest.approx(plain, abs=0.1)


def test_share_of_white_noise_is_the_area_of_its_band():
    share = high_frequency_share(0.5 + 0.1 * noise(8, 64, 96))
    assert share == pytest.approx(0.75, abs=0.02)  # all but the inner half by half
    assert high_frequency_share(smooth()) < 0.01
    odd = high_frequency_share(0.5 + 0.1 * noise(8, 63, 95))
    assert odd == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("width", [95, 96])
def test_energy_is_that_of_the_windowed_frame(width):
    """Parseval: the half of the spectrum that is not computed counts, its axes do not count twice."""
    y = 0.5 + 0.1 * noise(1, 64, width)
    window = torch.outer(
        torch.hann_window(64, periodic=False), torch.hann_window(width, periodic=False)
    )
    expected = 64 * width * ((y - y.mean()) * window).square().sum().item()
    assert _energy(y, 0.25, 0.25)[1] == pytest.approx(expected, rel=1e-4)


def test_flat_clips_have_no_detail_to_compare():
    flat = torch.full((2, 64, 96), 0.4)
    assert high_frequency_share(flat) is None and spatial_repetition(flat) is None
    assert high_frequency_gain(smooth(), flat[:, ::2, ::2]) is None
    assert high_frequency_gain(smooth(), smooth()) is None  # the LR clip is as large


# -- doubling ---------------------------------------------------------------------------------


def test_copies_of_an_object_are_a_half_and_two_thirds():
    one = spatial_repetition(blobs((32, 30)))
    two = spatial_repetition(blobs((32, 22), (32, 70)))
    three = spatial_repetition(blobs((32, 16), (32, 48), (32, 80)))
    assert one < 0.15 and two == pytest.approx(0.5, abs=0.06)
    assert three == pytest.approx(2 / 3, abs=0.08)


def test_copies_count_wherever_they_stand_and_nearby_shoulders_do_not():
    assert spatial_repetition(blobs((14, 20), (50, 76))) == pytest.approx(0.5, abs=0.08)
    assert spatial_repetition(blobs((32, 40), (32, 50))) < 0.2  # one oblong


def test_noise_does_not_repeat_and_a_periodic_ground_does():
    assert spatial_repetition(0.5 + 0.1 * noise(2, 64, 96)) < 0.1
    stripes = 0.5 + 0.3 * torch.sin(2 * math.pi * grid()[1] / 12).expand(2, -1, -1)
    assert spatial_repetition(stripes) > 0.6  # the docstring says so


def test_repetition_does_not_depend_on_resolution():
    double = blobs((32, 22), (32, 70))
    large = F.interpolate(double[:, None], (448, 672), mode="nearest")[:, 0]
    assert spatial_repetition(large) == pytest.approx(spatial_repetition(double), abs=0.05)


# -- seams ------------------------------------------------------------------------------------


def tiled(strength, period=(16, 32), frames=3):
    """Every brick a little brighter or darker than it should be."""
    y, x = grid()
    draw = torch.rand(4, 3, generator=torch.Generator().manual_seed(3)) - 0.5
    return 0.5 * smooth(frames) + 0.25 + strength * draw[y // period[0], x // period[1]]


def test_seams_are_found_at_their_period_only():
    values = [seams(tiled(s), (16, 32), 8) for s in (0.0, 0.05, 0.2)]
    assert abs(values[0]) < 0.05 and values[0] < values[1] < values[2] and values[2] > 1
    assert seams(tiled(0.2), (24, 40), 8) < 0.5 * values[2]
    assert seams(tiled(0.2), (16, 32), 1) > 1


def test_the_grid_of_the_decoder_is_no_seam_of_the_windows():
    y, x = grid()
    patches = 0.5 + 0.1 * ((y // 8 + x // 8) % 2).expand(2, -1, -1)
    assert seams(patches, (16, 16), 8) == pytest.approx(0, abs=1e-4)
    assert seams(patches, (8, 8), 8) is None  # cannot be told apart


def test_a_gradient_and_a_flat_frame_have_no_seams():
    ramp = (grid()[1] / 96).expand(2, -1, -1)
    assert seams(ramp, (16, 16), 1) == pytest.approx(0, abs=1e-3)
    assert seams(torch.zeros(2, 64, 96), (16, 16), 8) == 0
    assert seams(ramp, (64, 96), 8) is None  # nothing is cut


# -- flicker ----------------------------------------------------------------------------------


def test_flicker_of_frozen_and_of_fresh_noise():
    still = (0.5 + 0.1 * noise(1, 64, 96)).expand(5, -1, -1)
    assert high_frequency_flicker(still) == 0
    fresh = high_frequency_flicker(0.5 + 0.1 * noise(5, 64, 96))
    assert fresh == pytest.approx(2**0.5, abs=0.02)
    assert high_frequency_flicker(still[:1]) is None
    assert high_frequency_flicker(torch.zeros(3, 64, 96)) is None
    breathing = smooth(1) * torch.tensor([1.0, 0.8, 1.0, 0.8])[:, None, None]
    assert (
        high_frequency_flicker(breathing + still[:4] - 0.5) < 0.2
    )  # slow light is not fine flicker


# -- the scorer -------------------------------------------------------------------------------


def saved(folder: Path, y: torch.Tensor, name: str) -> Path:
    write_video(folder / name, y[..., None].expand(-1, -1, -1, 3).clamp(0, 1), 8)
    return folder / name


def test_every_name_of_a_clip_with_everything(tmp_path):
    path, low = saved(tmp_path, tiled(0.2), "a.mp4"), saved(tmp_path, smooth(3, 32, 48), "l.mp4")
    record = {"recipe": {"vae_tile": [40, 32], "brick_high": [1, 2, 4]}, "token_pixels": 8}
    scores = HighRes().score(Clip(path, "", 0, tmp_path, low, record))
    assert tuple(scores) == HighRes.names
    assert all(isinstance(x, float) and math.isfinite(x) for x in scores.values())
    assert scores["window_seams"] > 1 and scores["tile_seams"] > 0.5
    assert scores["black_frames"] == 0


def test_what_does_not_apply_is_none():
    scores = HighRes().score(Clip.of(blobs((32, 30))[:1, ..., None].expand(-1, -1, -1, 3), ""))
    unknown = {"high_frequency_gain", "tile_seams", "window_seams", "high_frequency_flicker"}
    assert {k for k, v in scores.items() if v is None} == unknown | {"frozen_frames"}
    black = HighRes().score(Clip.of(torch.zeros(3, 64, 96, 3), ""))
    assert black["black_frames"] == black["frozen_frames"] == 1
    old = {"recipe": {"brick_high": [1, 2, 2]}}  # a record that does not tell the token's side
    clip = Clip(Path(), "", 0, Path(), None, old)
    vars(clip)["frames"] = (tiled(0.2)[..., None].expand(-1, -1, -1, 3) * 255).byte()
    assert HighRes().score(clip)["window_seams"] is None
    assert HighRes(token_pixels=8).score(clip)["window_seams"] is not None


@pytest.mark.parametrize("value", [0, -8, "8px", 7.5])
def test_a_token_without_a_side_is_refused(value):
    with pytest.raises(UserError, match="type the backbone's `multiple`"):
        HighRes(token_pixels=value)
