"""Error curves as a picture: |z_0 - z_ref| / |z_ref| over the step count, both logarithmic.

One panel per hand-off noise, at the first guidance; at the end of each line its solver and the
slope over the last doubling of N, -1 for a first-order solver. Column width, a marker of its own for
each line.
"""

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from figures import COLUMN, plain_numbers, plt, write
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

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

LEADER = {"arrowstyle": "-", "lw": 0.4, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Write path.png and path.pdf from the rows of one result file."""
    write(drawn(rows), path)


def drawn(rows: list[dict[str, Any]]) -> Figure:
    """The figure of one result file, not yet written."""
    rows = [r for r in rows if r["guidance"] == rows[0]["guidance"]]
    noises = list(dict.fromkeys(r["noise"] for r in rows))
    size = (COLUMN, 2.35 * len(noises))
    figure, axes = plt.subplots(len(noises), figsize=size, squeeze=False)
    for ax, noise in zip(axes[:, 0], noises, strict=True):
        panel(ax, [r for r in rows if r["noise"] == noise])
        ax.set_title(f"guidance {rows[0]['guidance']:g}, {noise} noise at the hand-off", pad=3)
    axes[-1, 0].set_xlabel("steps N of the whole grid")
    figure.subplots_adjust(left=0.185, right=0.7, top=0.95, bottom=0.09, hspace=0.28)
    return figure


def panel(ax: Axes, rows: list[dict[str, Any]]) -> None:
    """The curves of one hand-off noise."""
    steps, ends = [r["steps"] for r in rows], {}
    for name, (label, colour, marker, dashes) in LOOK.items():
        error = [r["error"][name] for r in rows]
        ax.loglog(steps, error, dashes, color=colour, marker=marker, ms=3, mew=0.8)
        slope = f" {_slope(steps, error):+.1f}".replace("-", "−") if len(rows) > 1 else ""
        ends[f"{label}{slope}"] = (error[-1], colour)
    plain_numbers(ax, "x", steps)
    plain_numbers(ax, "y")
    ax.minorticks_off()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.set_ylabel("relative error of z₀")
    ax.grid(True)
    look = {"xycoords": "axes fraction", "va": "center", "fontsize": 6.5}
    for text, place in zip(ends, spread(ax, [e for e, _ in ends.values()]), strict=True):
        error, colour = ends[text]
        at = {"xy": (1, _height(ax, error)), "xytext": (1.08, place)}
        ax.annotate(text, **at, **look, color=colour, arrowprops=LEADER | {"color": colour})


def spread(ax: Axes, values: list[float], gap: float = 0.085) -> list[float]:
    """Heights of labels beside their values, as fractions of the axis, at least `gap` apart."""
    placed = [_height(ax, v) for v in values]
    order = sorted(range(len(placed)), key=placed.__getitem__)
    for _ in range(300):  # neighbours that are too close push each other away
        for a, b in zip(order[:-1], order[1:], strict=True):
            push = max(gap - (placed[b] - placed[a]), 0) / 2
            placed[a], placed[b] = placed[a] - push, placed[b] + push
    return placed


def _height(ax: Axes, value: float) -> float:
    low, high = (math.log(y) for y in ax.get_ylim())
    return (math.log(value) - low) / (high - low)


def _slope(steps: list[int], error: list[float]) -> float:
    return math.log(error[-1] / error[-2]) / math.log(steps[-1] / steps[-2])
