"""Temporal flickering as VBench 0.1.5 computes it, from the frames alone.

With 8-bit frames x_1 .. x_T and the mean taken over all pixels and channels,

    mae_k = mean |x_{k+1} - x_k|,      temporal flickering = (255 - mean_k mae_k) / 255,

so 1 is a frozen video and 0 one that alternates between black and white. Equals
`vbench.temporal_flickering` on the same decoded frames to 1e-6; VBench decodes with OpenCV, whose grey
levels may differ by one here and there, which moves the score by less than 1e-3.

Where it fails: it cannot tell flicker from movement, and sharper detail that moves costs more. VBench
applies it to prompts that ask for a still scene, after dropping clips that move.
"""

from itertools import pairwise

import torch

from s2flow.scorers import Clip, Scorer


class TemporalFlickering(Scorer):
    """{"temporal_flickering": in [0, 1], higher is steadier}; None for a single frame."""

    names = ("temporal_flickering",)

    def score(self, clip: Clip) -> dict[str, float | None]:
        """See the class; sums are taken in whole numbers, where VBench rounds in float32."""
        if len(clip.frames) < 2:
            return {"temporal_flickering": None}
        maes = [
            (after.short() - before.short()).abs().sum(dtype=torch.int64).item() / before.numel()
            for before, after in pairwise(clip.frames)
        ]
        return {"temporal_flickering": (255.0 - sum(maes) / len(maes)) / 255.0}
