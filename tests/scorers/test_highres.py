"""High-resolution scores see what they are named for: detail, doubling, seams, flicker."""

import math

import pytest
import torch
import torch.nn.functional as F

from s2flow.errors import UserError
from s2flow.scorers import Clip
from s2flow.scorers.highres import (
    HighRes,
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
    for size in ((64, 96), (63, 95)):
        share = high_frequency_share(0.5 + 0.1 * noise(8, *size))
        assert share == pytest.approx(0.75, abs=0.02)  # all but the inner half by half
    assert high_frequency_share(smooth()) < 0.01


def test_energy_on_an_axis_of_the_half_spectrum_counts_once():
    y, x = grid()
    waves = torch.cos(2 * math.pi * 0.4 * y) + torch.cos(2 * math.pi * 0.15 * x)
    assert high_frequency_share(0.5 + 0.2 * waves[None]) == pytest.approx(0.5, abs=0.01)


def test_flat_clips_have_no_detail_to_compare():
    flat = torch.full((2, 64, 96), 0.4)
    assert high_frequency_share(flat) is None and spatial_repetition(flat) is None
    assert high_frequency_gain(smooth(), flat[:, ::2, ::2]) is None
    assert high_frequency_gain(smooth(), smooth()) is None  # the LR clip is as large


def test_copies_count_wherever_they_stand_and_nearby_shoulders_do_not():
    assert spatial_repetition(blobs((32, 30))) < 0.15
    assert spatial_repetition(blobs((14, 20), (50, 76))) == pytest.approx(0.5, abs=0.08)
    three = spatial_repetition(blobs((32, 16), (32, 48), (32, 80)))
    assert three == pytest.approx(2 / 3, abs=0.08)
    assert spatial_repetition(blobs((32, 40), (32, 50))) < 0.2  # one oblong


def test_noise_does_not_repeat_and_a_periodic_ground_does():
    assert spatial_repetition(0.5 + 0.1 * noise(2, 64, 96)) < 0.1
    stripes = 0.5 + 0.3 * torch.sin(2 * math.pi * grid()[1] / 12).expand(2, -1, -1)
    assert spatial_repetition(stripes) > 0.6  # the docstring says so


def test_repetition_does_not_depend_on_resolution():
    double = blobs((32, 22), (32, 70))
    large = F.interpolate(double[:, None], (448, 672), mode="nearest")[:, 0]
    assert spatial_repetition(large) == pytest.approx(spatial_repetition(double), abs=0.05)


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


def test_flicker_of_frozen_and_of_fresh_noise():
    still = (0.5 + 0.1 * noise(1, 64, 96)).expand(5, -1, -1)
    assert high_frequency_flicker(still) == 0
    fresh = high_frequency_flicker(0.5 + 0.1 * noise(5, 64, 96))
    assert fresh == pytest.approx(2**0.5, abs=0.02)
    assert high_frequency_flicker(still[:1]) is None
    assert high_frequency_flicker(torch.zeros(3, 64, 96)) is None
    breathing = smooth(1) * torch.tensor([1.0, 0.8, 1.0, 0.8])[:, None, None]
    assert high_frequency_flicker(breathing + still[:4] - 0.5) < 0.2  # slow light is no flicker


def in_colour(y):
    return y[..., None].expand(-1, -1, -1, 3).clamp(0, 1)


def test_every_name_of_a_clip_with_everything(tmp_path):
    files = [tmp_path / name for name in ("a.mp4", "low.mp4")]
    for file, y in zip(files, (tiled(0.2), smooth(3, 32, 48)), strict=True):
        write_video(file, in_colour(y), 8)
    record = {"recipe": {"vae_tile": [40, 32], "brick_high": [1, 2, 4]}, "token_pixels": 8}
    scores = HighRes().score(Clip(files[0], "", 0, tmp_path, files[1], record))
    assert tuple(scores) == HighRes.names
    assert all(isinstance(x, float) and math.isfinite(x) for x in scores.values())
    assert scores["window_seams"] > 1 and scores["tile_seams"] > 0.5
    assert scores["black_frames"] == 0


def test_what_does_not_apply_is_none():
    scores = HighRes().score(Clip.of(in_colour(blobs((32, 30))[:1]), ""))
    unknown = {"high_frequency_gain", "tile_seams", "window_seams", "high_frequency_flicker"}
    assert {k for k, v in scores.items() if v is None} == unknown | {"frozen_frames"}
    black = HighRes().score(Clip.of(torch.zeros(3, 64, 96, 3), ""))
    assert black["black_frames"] == black["frozen_frames"] == 1
    clip = Clip.of(in_colour(tiled(0.2)), "")
    clip.record["recipe"] = {
        "brick_high": [1, 2, 2]
    }  # and not the token's side, as in old records
    assert HighRes().score(clip)["window_seams"] is None
    assert HighRes(token_pixels=8).score(clip)["window_seams"] is not None


def test_a_token_without_a_side_is_refused():
    for value in (0, -8, "8px", 7.5):
        with pytest.raises(UserError, match="type the backbone's `multiple`"):
            HighRes(token_pixels=value)
