"""Temporal flickering as VBench 0.1.5 computes it, from the frames alone.

With 8-bit frames x_1 .. x_T and the mean taken over all pixels and channels,

    mae_k = mean |x_{k+1} - x_k|,      temporal flickering = (255 - mean_k mae_k) / 255,

so 1 is a frozen video and 0 one that alternates between black and white. Equals
`vbench.temporal_flickering` on the same decoded frames to 1e-6; sums are taken in whole numbers,
where VBench rounds in float32. VBench decodes with OpenCV: another decoder may differ by a grey
level here and there, which moves the score by less than 1e-3.

Where it fails: it cannot tell flicker from movement. VBench applies it to prompts that ask for a
still scene, after dropping clips that move; on other prompts a higher value mostly means less
motion. Resolution counts too: sharper detail that moves costs more than soft detail that moves.
"""

from itertools import pairwise

import torch
from torch import Tensor

from s2flow.scorers import Clip, Scorer
from s2flow.video import to_bytes


class TemporalFlickering(Scorer):
    """{"temporal_flickering": in [0, 1], higher is steadier}; None for a single frame."""

    names = ("temporal_flickering",)

    def score(self, clip: Clip) -> dict[str, float | None]:
        """See the class."""
        return {"temporal_flickering": temporal_flickering(clip.frames)}


def temporal_flickering(video: Tensor) -> float | None:
    """(T, H, W, 3), uint8 or in [0, 1] -> score of the frames at 8 bits, as they are saved."""
    if len(video) < 2:
        return None
    frames = to_bytes(video)
    maes = [
        (after.short() - before.short()).abs().sum(dtype=torch.int64).item() / before.numel()
        for before, after in pairwise(frames)
    ]
    return (255.0 - sum(maes) / len(maes)) / 255.0
