"""Videos that play anywhere and come back as they were; contact sheets of the right size."""

import os

import imageio.v3 as iio
import pytest
import torch
from PIL import Image

from s2flow.scorers.fidelity import psnr
from s2flow.video import Undecodable, contact_sheet, read_video, write_video


def smooth(frames=6, height=64, width=96):
    """Colours that change slowly over time and space."""
    t, y, x = torch.meshgrid(
        *(torch.linspace(0, 1, n) for n in (frames, height, width)), indexing="ij"
    )
    return torch.stack([x * 0.8 + 0.1, y * 0.6 + 0.2 * t, 0.5 + 0.4 * (x - y)], -1)


def test_a_video_comes_back_as_it_was(tmp_path):
    video = smooth()
    write_video(tmp_path / "a.mp4", video, fps=8)
    back = read_video(tmp_path / "a.mp4")
    assert back.shape == video.shape and back.dtype == torch.float32
    assert psnr(back, video) > 35
    errors = [(back - video.roll(k, 0)).square().mean() for k in range(3)]
    assert errors[0] == min(errors)  # frames stay in order


def test_colours_keep_their_order_and_range(tmp_path):
    video = torch.zeros(2, 32, 48, 3)
    video[:, :, :24, 0] = 1.7  # out of range is clamped
    video[:, :, 24:, 2] = 1
    write_video(tmp_path / "a.mp4", video, fps=8)
    back = read_video(tmp_path / "a.mp4")
    assert torch.allclose(back[0, 16, 8], torch.tensor([1.0, 0, 0]), atol=0.06)
    assert torch.allclose(back[0, 16, 40], torch.tensor([0, 0, 1.0]), atol=0.06)


@pytest.mark.parametrize("size", [(1, 32, 48), (2, 32, 48), (5, 66, 34), (8, 128, 192)])
def test_any_even_size_keeps_its_frames(size, tmp_path):
    write_video(tmp_path / "a.mp4", smooth(*size), fps=8)
    assert read_video(tmp_path / "a.mp4").shape == (*size, 3)


def test_it_is_h264_yuv420p_at_its_frame_rate_with_the_index_in_front(tmp_path):
    write_video(tmp_path / "a.mp4", smooth(), fps=8)
    meta = iio.immeta(tmp_path / "a.mp4", plugin="FFMPEG")
    assert meta["codec"] == "h264" and meta["pix_fmt"].startswith("yuv420p")
    assert meta["fps"] == 8 and meta["size"] == (96, 64)
    data = (tmp_path / "a.mp4").read_bytes()
    write_video(tmp_path / "b.mp4", smooth(), fps=8)
    assert (tmp_path / "b.mp4").read_bytes() == data
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("size", [(2, 33, 48), (2, 32, 49)])
def test_odd_sides_are_refused(size, tmp_path):
    with pytest.raises(ValueError, match=f"even sides, not {size[1]}x{size[2]}"):
        write_video(tmp_path / "a.mp4", smooth(*size), fps=8)
    assert not (tmp_path / "a.mp4").exists()


def test_a_file_that_ffmpeg_left_unfinished_is_an_error(tmp_path, monkeypatch):
    """A full disk kills ffmpeg in the middle, and imageio does not say so."""
    monkeypatch.setattr(iio, "imwrite", lambda path, *_, **__: path.write_bytes(b"ftypmdat"))
    with pytest.raises(OSError, match=r"ffmpeg could not finish a\.mp4"):
        write_video(tmp_path / "a.mp4", smooth(), fps=8)


def test_a_contact_sheet_opens_and_has_the_right_size(tmp_path):
    rows = [("LR 32x48", smooth(8, 32, 48)), ("HR 64x96", smooth(8))]
    contact_sheet(tmp_path / "a.png", rows, "a cat\nwith 🦊 and a " + "long " * 99)
    with Image.open(tmp_path / "a.png") as sheet:
        sheet.load()
        assert sheet.format == "PNG" and sheet.mode == "RGB"
        assert sheet.size == (4 * (192 + 4) + 4, 14 + 2 * (128 + 14 + 4))
        first, last = (sheet.getpixel((8 + 196 * i, 14 + 14 + 146 + 100)) for i in (0, 3))
    video = smooth(8)
    for pixel, frame in ((first, 0), (last, 7)):  # the first and the last frame are shown
        assert abs(pixel[1] / 255 - video[frame, 50, 2, 1]) < 0.05
    contact_sheet(tmp_path / "b.png", [("", smooth(1))], "")
    with Image.open(tmp_path / "b.png") as sheet:
        assert sheet.size == (192 + 8, 14 + 146)


@pytest.mark.parametrize("kept", [0, 40, 0.5, 0.9, -1])
def test_a_broken_file_is_undecodable(tmp_path, kept):
    write_video(tmp_path / "a.mp4", torch.rand(9, 32, 48, 3), 8)
    whole = (tmp_path / "a.mp4").read_bytes()
    cut = int(kept * len(whole)) if isinstance(kept, float) else kept
    (tmp_path / "b.mp4").write_bytes(whole[: cut if cut >= 0 else len(whole) - 2000])
    with pytest.raises(Undecodable, match=r"b\.mp4"):
        read_video(tmp_path / "b.mp4")
    with pytest.raises(Undecodable, match=r"c\.mp4"):
        read_video(tmp_path / "c.mp4")


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one core"
)
def test_a_file_does_not_depend_on_the_cores_that_encode_it(tmp_path):
    cores, video = os.sched_getaffinity(0), torch.rand(9, 128, 192, 3)
    write_video(tmp_path / "all.mp4", video, 8)
    try:
        os.sched_setaffinity(0, {min(cores)})
        write_video(tmp_path / "one.mp4", video, 8)
    finally:
        os.sched_setaffinity(0, cores)
    assert (tmp_path / "all.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
