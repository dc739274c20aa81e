"""Best bold, second best underlined: which cells of a column, as in the paper's tables.

Only like is ranked with like: our rows among themselves, the paper's among themselves, and of ours
only the rows with as many scored clips as the fullest one, for a mean over fewer prompts is another
quantity. Cells that print alike share a rank; what comes next is second. A column whose cells are all
alike, or of which it is not known which end is better, has no marks; neither have our seconds, which
depend on what else the machine was doing.
"""

from collections.abc import Sequence

from s2flow import metrics

BEST, SECOND = "best", "second"
HIGHER = {
    *metrics.SIX,
    *("subject_consistency", "object_class", "multiple_objects", "human_action", "color"),
    *("spatial_relationship", "scene", "appearance_style", "temporal_style"),
    *("Temporal", "Visual", "Mean", "temporal", "visual", "mean", "speed-up"),
    *("psnr", "ssim", "musiq_512"),
}
LOWER = {
    *("repetition", "relative_error", "latent_relative_error", "lpips", "minutes"),
    *("spatial_repetition", "tile_seams", "window_seams", "frechet_distance"),
}
NEAR_ONE = {"detail"}  # of the embedded world: that of a true render


def marks(column: str, cells: Sequence[float | str | None], clips: Sequence[int]) -> list[str]:
    """ "best", "second" or "" for every cell; clips: how many are behind each, alike for the paper's.

    column: its name without the words that say whose it is.
    """
    numbers = [
        c if isinstance(c, (int, float)) and n else None for c, n in zip(cells, clips, strict=True)
    ]
    fullest = max((n for c, n in zip(numbers, clips, strict=True) if c is not None), default=0)
    ranked = {
        i: _badness(column, round(c, 4))
        for i, (c, n) in enumerate(zip(numbers, clips, strict=True))
        if c is not None and n == fullest
    }
    levels = sorted({b for b in ranked.values() if b is not None})
    if len(levels) < 2:
        return [""] * len(cells)
    word = {levels[0]: BEST, levels[1]: SECOND}
    return [word.get(ranked.get(i), "") for i in range(len(cells))]


def _badness(column: str, value: float) -> float | None:
    """Smaller is better; None where the column has no better end."""
    if column in HIGHER or column.startswith("world_"):
        return -value
    if column in LOWER:
        return value
    return abs(value - 1) if column in NEAR_ONE else None
