"""Video files and pictures: H.264 mp4 that plays anywhere, and contact sheets."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

# one thread: x264's output depends on their number, and equal pixels must give equal files
THREADS = ["-threads", "1"]
QUALITY = ["-crf", "10", "-preset", "medium", "-movflags", "+faststart", "-f", "mp4"]


def write_video(path: Path, video: Tensor, fps: int) -> None:
    """Write (T, H, W, 3) in [0, 1] as H.264, yuv420p, high quality; sides must be even.

    NaN and infinity become black; `s2flow.store.outcome` counts them beforehand.
    Raises ValueError for odd sides and OSError if ffmpeg could not finish the file.
    """
    if video.shape[1] % 2 or video.shape[2] % 2:
        raise ValueError(f"yuv420p needs even sides, not {video.shape[1]}x{video.shape[2]}")
    kind = {"codec": "libx264", "pixelformat": "yuv420p", "macro_block_size": 1}
    frames, options = to_bytes(video).cpu().numpy(), {"output_params": THREADS + QUALITY, **kind}
    iio.imwrite(path, frames, plugin="FFMPEG", fps=fps, ffmpeg_log_level="error", **options)
    if b"moov" not in path.read_bytes():  # the index, written last; ffmpeg's errors are silent
        raise OSError(f"ffmpeg could not finish {path.name}")


def to_bytes(video: Tensor) -> Tensor:
    """Values in [0, 1] at 8 bits, as they are saved; NaN and infinity become 0, uint8 is kept."""
    if video.dtype == torch.uint8:
        return video
    finite = video.nan_to_num(0.0, 0.0, 0.0)
    return (finite.clamp(0, 1) * 255).round().to(torch.uint8)


def luminance(video: Tensor) -> Tensor:
    """Y = .299 R + .587 G + .114 B of (..., 3), uint8 or in [0, 1] -> (...) float32 in [0, 1]."""
    scale = 255.0 if video.dtype == torch.uint8 else 1.0
    weights = torch.tensor([0.299, 0.587, 0.114], device=video.device) / scale
    return video.float() @ weights


def size_text(shape: Sequence[int]) -> str:
    """ "3 frames of 64x96" of (frames, height, width, ...)."""
    return f"{shape[0]} frames of {shape[1]}x{shape[2]}"


class Undecodable(ValueError):
    """A file that is missing, no video, or truncated: raised by all that reads videos."""


def read_video(path: Path) -> Tensor:
    """A video file as (T, H, W, 3), float32 in [0, 1]."""
    return read_frames(path).float().div_(255)


def read_frames(path: Path) -> Tensor:
    """A video file as (T, H, W, 3), uint8; in this process, by PyAV."""
    return torch.from_numpy(np.stack([f.to_ndarray(format="rgb24") for f in _frames(path)]))


def frame_count(path: Path) -> int:
    """Number of frames of a video file, by decoding all."""
    return sum(1 for _ in _frames(path))


def first_frame(path: Path) -> np.ndarray:
    """The first frame of a video file, (H, W, 3) uint8."""
    return next(_frames(path)).to_ndarray(format="rgb24")


def _frames(path: Path) -> Iterator[av.VideoFrame]:
    with _opened(path) as container:
        count, stated = 0, container.streams.video[0].frames
        for frame in container.decode(video=0):
            count += 1
            yield frame
    if count < max(stated, 1):
        raise Undecodable(f"{path} is truncated after {count} of {stated} frames")


def stated_size(path: Path) -> tuple[int, int, int]:
    """(frames, height, width) that a file's header states."""
    with _opened(path) as container:
        stream = container.streams.video[0]
        return stream.frames, stream.height, stream.width


def stated_rate(path: Path) -> float | None:
    """Frames per second that a file's header states."""
    with _opened(path) as container:
        rate = container.streams.video[0].average_rate
        return float(rate) if rate else None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with av.open(str(path)) as container:
            yield container
    except (av.FFmpegError, OSError, IndexError) as error:
        raise Undecodable(f"{path} cannot be decoded: {error}") from None


def contact_sheet(
    path: Path, rows: list[tuple[str, Tensor]], title: str, columns: int = 4, height: int = 128
) -> None:
    """Rows of frames under one another, each enlarged to the same height without smoothing.

    rows: (label, video (T, H, W, 3) in [0, 1]); columns frames of each are shown.
    """
    gap, text = 4, 14
    strips = []
    for _, video in rows:
        pick = torch.linspace(0, len(video) - 1, min(columns, len(video))).round().long()
        images = [Image.fromarray(f) for f in to_bytes(video[pick]).cpu().numpy()]
        size = (round(images[0].width * (height / images[0].height)), height)
        strips.append([im.resize(size, Image.Resampling.NEAREST) for im in images])
    width = max(sum(im.width + gap for im in images) for images in strips) + gap
    sheet = Image.new("RGB", (width, text + len(strips) * (height + text + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    title = " ".join(title.split()).encode("latin-1", "replace").decode("latin-1")
    draw.text((gap, 1), title, fill="black")
    for i, ((label, _), images) in enumerate(zip(rows, strips, strict=True)):
        top = text + i * (height + text + gap)
        draw.text((gap, top + 1), label, fill=(90, 90, 90))
        for j, image in enumerate(images):
            sheet.paste(image, (gap + j * (image.width + gap), top + text))
    sheet.save(path, format="PNG")
