"""A clip that exists, to be refined: it takes the place of the LR flow (`input=clip.mp4`, `video=`).

The clip is brought to the model's frame rate (nearest frames in time), to a legal number of frames (the
last ones are dropped), and to a size that the model's strides divide (resized, when the recipe's LR
size is another one). Whatever is changed is said in one line. The recipe holds the clip's hash.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from s2flow.errors import UserError, note
from s2flow.handoff import resize_video
from s2flow.video import Undecodable, read_frames, to_bytes


@dataclass(frozen=True)
class Given:
    """video: (1, T, h, w, 3) float32 in [0, 1], as it is refined; sha256: of the frames as given."""

    video: Tensor
    sha256: str


def fitted(source: Any, cfg: DictConfig) -> Given:
    """The clip of a file, an array or a list of images, fitted to the config, which is told its size.

    source: a path, or frames (T, H, W, 3), uint8 or in [0, 1], or a list of PIL images. `low`,
    `high` (twice `low`) and `frames` are set where they are open. Raises UserError for what is no clip,
    is shorter than `frames`, or larger than `high`.
    """
    frames, fps, name = _frames(source)
    sha256 = hashlib.sha256(str(tuple(frames.shape)).encode() + frames.numpy().tobytes())
    conf, (count, height, width) = cfg.backbone, frames.shape[:3]
    chosen = frames
    if fps is not None and round(fps, 2) != conf.fps:
        times = torch.arange(int(count / fps * conf.fps + 1e-6)) / conf.fps * fps
        chosen = frames[times.round().long().clamp_max(count - 1)]
    step = conf.frame_step
    if cfg.frames is None:
        cfg.frames = max((min(len(chosen), conf.max_frames) - 1) // step * step + 1, 1)
    if len(chosen) < cfg.frames:
        raise UserError(
            f"{name} has {len(chosen)} frames at {conf.fps} fps, and frames={cfg.frames}; type "
            f"frames={(len(chosen) - 1) // step * step + 1}"
        )
    m = conf.multiple
    if cfg.low is None:
        cfg.low = [max(round(side / m), 1) * m for side in (height, width)]
    if cfg.high is None:
        cfg.high = [2 * side for side in cfg.low]
    if len(cfg.high) == 2 and (height > cfg.high[0] or width > cfg.high[1]):
        raise UserError(
            f"{name} is {height}x{width}, larger than high={list(cfg.high)}; type "
            f"high=[{2 * cfg.low[0]},{2 * cfg.low[1]}]"
        )
    video = chosen[: cfg.frames][None].float().div(255)
    if len(cfg.low) == 2 and [height, width] != list(cfg.low):
        video = resize_video(video, *cfg.low)
    was = (count, height, width, fps or conf.fps)
    now = (cfg.frames, *video.shape[2:4], conf.fps)
    if was != now:
        text = "{} frames of {}x{} at {:g} fps"
        note(f"{name} has {text.format(*was)}; refined are {text.format(*now)}")
    return Given(video, sha256.hexdigest()[:12])


def _frames(source: Any) -> tuple[Tensor, float | None, str]:
    """(T, H, W, 3) uint8, the frame rate (None: unknown) and a name for messages."""
    if isinstance(source, (str, Path)):
        try:
            frames = read_frames(Path(source))
            with av.open(str(source)) as container:
                fps = float(container.streams.video[0].average_rate or 0) or None
        except Undecodable as error:
            raise UserError(f"input={source} is no video ({error}); type input=clip.mp4") from None
        return frames, fps, f"input={source}"
    frames = source if isinstance(source, Tensor) else torch.from_numpy(np.asarray(source))
    if isinstance(source, list) and source and not isinstance(source[0], Tensor):
        frames = torch.from_numpy(np.stack([np.asarray(frame) for frame in source]))
    if frames.ndim == 5 and len(frames) == 1:
        frames = frames[0]
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise UserError(
            f"video has the shape {tuple(frames.shape)}; type frames (T, H, W, 3), or a file's name"
        )
    return to_bytes(frames.cpu()), None, "video"
