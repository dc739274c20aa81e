"""The outcome of a clip: ok, nan, black, or frozen.

A window that is too small for its model can end in black frames (the paper's "50 %*"), and half
precision in NaN. That is a result to record, not a crash, detected before the video is written, because
an mp4 cannot hold NaN. Of frames x_1 .. x_T with luminance Y at 8 bits,

    nan_share     = share of values that are NaN or infinite
    black_frames  = share of frames of which 99.9 % of the pixels have Y < 16
    frozen_frames = share of neighbours x_k, x_{k+1} of which at most 0.1 % of the pixels differ in Y
                    by more than 3; None for a single frame

and the outcome is the first of these that holds: "nan" (any such value, there or in the latent),
"black" (every frame), "frozen" (all neighbours), "ok". Where it fails: a night scene with few lights
is black to these numbers, and a still scene frozen, whether the prompt calls for it or not; an object
under 0.1 % of the frame moves unseen.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from s2flow.video import luminance, to_bytes

BLACK, STILL = 16.0, 3.0  # of 255
FEW = 0.001  # of a frame's pixels


def outcome(video: Tensor, latent: Tensor) -> dict[str, Any]:
    """Of a clip as generated, (T, H, W, 3) in [0, 1], and its final latent, for the record.

    {"outcome", "nan_share", "black_frames", "frozen_frames"}; the shares of frames are None where
    values were lost, because a black pixel would be one that nobody generated.
    """
    lost = (~torch.isfinite(video)).sum().item() / video.numel()
    if lost or not torch.isfinite(latent).all():
        return {"outcome": "nan", "nan_share": lost, "black_frames": None, "frozen_frames": None}
    frames = to_bytes(video)
    black, frozen = black_frames(frames), frozen_frames(frames)
    word = "black" if black == 1 else "frozen" if frozen == 1 else "ok"
    return {"outcome": word, "nan_share": 0.0, "black_frames": black, "frozen_frames": frozen}


def black_frames(video: Tensor) -> float:
    """Share of black frames; (T, H, W, 3), uint8 or in [0, 1]."""
    return sum(_few(luminance(x) * 255 >= BLACK) for x in video) / len(video)


def frozen_frames(video: Tensor) -> float | None:
    """Share of neighbouring frames that are the same; None for a single frame."""
    pairs = pairwise(map(luminance, video))
    frozen = [_few((after - before).abs() * 255 > STILL) for before, after in pairs]
    return sum(frozen) / len(frozen) if frozen else None


def _few(pixels: Tensor) -> bool:
    return bool(pixels.float().mean() <= FEW)
