"""Error curves as a picture: |z_0 - z_ref| / |z_ref| over the step count, both logarithmic.
 One panel per hand-off noise, at the first guidance; its legend has, from the largest last error to
the smallest, each solver with the slope over the last doubling of N, -1 for a first-order solver.
"""

import math
from typing import Any

import matplotlib

matplotlib.use("Agg")

from figures import COLUMN, plain_numbers, plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LOOK = {  # solver -> (name on the page, colour, marker, dashes)
    "euler": ("Euler", "#000000", "o", "-"),
    "lri order 2": ("LRI 2", "#D55E00", "s", "-"),
    "lri order 3": ("LRI 3", "#D55E00", "^", ":"),
    "lri order 2, equal SNR": ("LRI 2, SNR", "#E69F00", "D", "-"),
    "lri_cv": ("LRI-CV", "#CC79A7", "v", "--"),
    "ab2": ("AB2", "#0072B2", "o", "-"),
    "ab3": ("AB3", "#56B4E9", "s", "-"),
    "unipc": ("UniPC", "#009E73", "D", "-"),
    "heun": ("Heun (2 calls)", "#7F7F7F", "x", "--"),
}


def drawn(rows: list[dict[str, Any]]) -> Figure:
    """The figure of one result file."""
    rows = [r for r in rows if r["guidance"] == rows[0]["guidance"]]
    noises = list(dict.fromkeys(r["noise"] for r in rows))
    size = {"figsize": (COLUMN, 2.35 * len(noises)), "layout": "constrained"}
    figure, axes = plt.subplots(len(noises), squeeze=False, **size)
    for ax, noise in zip(axes[:, 0], noises, strict=True):
        panel(ax, [r for r in rows if r["noise"] == noise])
        ax.set_title(f"guidance {rows[0]['guidance']:g}, {noise} noise at the hand-off", pad=3)
    axes[-1, 0].set_xlabel("steps N of the whole grid")
    return figure


def panel(ax: Axes, rows: list[dict[str, Any]]) -> None:
    """The curves of one hand-off noise."""
    steps = [r["steps"] for r in rows]
    for name in sorted(LOOK, key=lambda name: -rows[-1]["error"][name]):
        label, colour, marker, dashes = LOOK[name]
        error = [r["error"][name] for r in rows]
        slope = ""
        if len(rows) > 1:
            slope = math.log(error[-1] / error[-2]) / math.log(steps[-1] / steps[-2])
            slope = f" {slope:+.1f}".replace("-", "−")
        look = {"color": colour, "marker": marker, "ms": 3, "mew": 0.8}
        ax.loglog(steps, error, dashes, label=label + slope, **look)
    plain_numbers(ax, "x", steps)
    plain_numbers(ax, "y")
    ax.set_ylabel("relative error of z₀")
    ax.grid(True)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=6.5)
