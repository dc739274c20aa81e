"""Bicubic: the LR video, resized. Not in the paper; the floor that every method must beat."""

from s2flow.cascade import Cascade, Generated
from s2flow.handoff import resize_video

KNOBS = ("low",)


def generate(run: Cascade) -> Generated:
    """LR flow to its end, decode, bicubic with antialias."""
    low = run.low_flow()
    low_video = run.preview(low, "decode")
    with run.clock("decode"):
        video = resize_video(low_video, *run.recipe.high)
    return Generated(video, low_video, low.flow.z[0].to(run.backbone.device), run.reports)
