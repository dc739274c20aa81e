"""Pictures of the benchmarks, from their JSON files: one function for each, named like its script.

    python experiments/bench_plots.py FILE.json ...     # PNG and PDF beside each file

For files that came from a machine without matplotlib, and after a change here. Column width (3.4
inches), Okabe and Ito's colours for the colour-blind, a marker or hatch of its own for each series.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

WIDTH = 3.4
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PINK, GREY = "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F"
BACKENDS = {  # name -> colour, marker
    "fa4": (GREEN, "D"),
    "triton": (BLUE, "o"),
    "flex": (PINK, "^"),
    "tiled": (RED, "s"),
    "reference": (GREY, "x"),
}
STAGES = {  # name -> colour, hatch
    "text": (GREY, ""),
    "lr": (SKY, ""),
    "plan": (BLACK, ""),
    "handoff": (YELLOW, "////"),
    "hr": (BLUE, ""),
    "decode": (ORANGE, ""),
    "preview": (PINK, "...."),
    "diagnostics": ("#BBBBBB", "xxxx"),
}
NAMES = {"hunyuan": "HunyuanVideo", "wan_1_3b": "Wan 1.3B", "handoff": "hand-off"}


def main() -> None:
    """Draw every file named."""
    if len(sys.argv) < 2:
        sys.exit("error: no file; type python experiments/bench_plots.py results/bench_X.json")
    for path in map(Path, sys.argv[1:]):
        kind = path.stem.split("_")[1] if path.stem.startswith("bench_") else ""
        if kind not in ("attention", "step", "vae", "pipeline") or not path.exists():
            sys.exit(f"error: {path} is no benchmark's file; type one of results/bench_*.json")
        globals()[kind](json.loads(path.read_text()), path.with_suffix(""))


def panels(heights: list[float]):
    """A figure of column width with one panel below the other."""
    style = {"font.size": 7, "axes.linewidth": 0.6, "pdf.fonttype": 42, "hatch.linewidth": 0.4}
    plt.rcParams.update(style)
    figure, axes = plt.subplots(
        len(heights),
        figsize=(WIDTH, sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    return figure, list(axes[:, 0])


def save(figure: Any, path: Path) -> None:
    """path.png and path.pdf."""
    for end in ("png", "pdf"):
        figure.savefig(f"{path}.{end}", dpi=220)
    plt.close(figure)


def above(figure: Any, ax: Axes, columns: int) -> None:
    """The legend of one panel over the whole figure, each label once."""
    handles, labels = ax.get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    look = {"fontsize": 6, "frameon": False, "columnspacing": 1.2, "handlelength": 1.4}
    figure.legend(known.values(), known, ncols=columns, loc="outside upper center", **look)


def bars(ax: Axes, right: float) -> None:
    """A panel of horizontal bars, the first one on top."""
    ax.invert_yaxis()
    ax.set_xlim(0, right)
    ax.grid(True, axis="x", lw=0.3, color="#DDDDDD")
    ax.set_axisbelow(True)


def titled(ax: Axes, text: str) -> None:
    """A title at the left, in the page's type size."""
    ax.set_title(text, fontsize=7, loc="left", pad=3)


def plain_numbers(ax: Axes, axis: str, ticks: list[float] | None = None) -> None:
    """Numbers instead of powers of ten on a logarithmic axis."""
    line = ax.xaxis if axis == "x" else ax.yaxis
    if ticks is not None:
        line.set_ticks(ticks)
        line.set_minor_locator(NullLocator())
    line.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    line.set_minor_formatter(NullFormatter())


# -- attention ----------------------------------------------------------------------------------


def attention(found: dict[str, Any], path: Path) -> None:
    """Speed-up over the best dense kernel by density, a panel a size; seconds against tokens."""
    names = [n for n in found["sizes"] if any(r["size"] == n for r in found.get("rows", []))]
    swept = len(found.get("sweep", [])) > 1
    if not names and not swept:
        return
    figure, axes = panels([2.3] * len(names) + [1.9] * swept)
    for name, ax in zip(names, axes, strict=False):
        _speed_up(ax, found, name)
    if swept:
        _tokens(axes[-1], found)
    save(figure, path)


def _speed_up(ax: Axes, found: dict[str, Any], name: str) -> None:
    rows = [r for r in found["rows"] if r["size"] == name and r["backend"] != "reference"]
    size = found["sizes"][name]
    by = sorted({r["density"] for r in rows})
    ax.plot([by[0], 1], [1 / by[0], 1], "--", color=GREY, lw=0.8, label="1/f")
    for backend, (colour, marker) in BACKENDS.items():
        own = [r for r in rows if r["backend"] == backend]
        mixed = [r for r in own if r["group"] == "mixed" and not r["ordered"]]
        mixed.sort(key=lambda r: r["density"])
        if mixed:
            x, y = ([r[k] for r in mixed] for k in ("density", "ratio"))
            ax.plot(x, y, "-", color=colour, marker=marker, ms=3.5, lw=1.1, label=backend)
        inside = sorted(
            (r for r in own if r["group"] == "mixed" and r["ordered"]), key=lambda r: r["density"]
        )
        if inside:
            x, y = ([r[k] for r in inside] for k in ("density", "ratio"))
            ax.plot(x, y, ":", color=colour, lw=1, label=f"{backend}, in brick order")
        shapes = [r for r in own if r["group"] != "mixed" and r["windows"] != "whole grid"]
        x, y = ([r[k] for r in shapes] for k in ("density", "ratio"))
        label = f"{backend}, one shape" if shapes else None
        ax.plot(x, y, "_", color=colour, ms=5, mew=0.8, alpha=0.7, label=label)
    ax.axhline(1, color=BLACK, lw=0.6)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.invert_xaxis()
    plain_numbers(
        ax, "x", [d for d in (1, 0.5, 0.25, 0.125, 0.0625, 0.03, 0.0156) if d > by[0] * 0.9]
    )
    top = max(1.2 / by[0], *(1.2 * r["ratio"] for r in rows))
    low = min(0.8, *(0.9 * r["ratio"] for r in rows))
    ax.set_ylim(low, top)
    plain_numbers(ax, "y", [y for y in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if low <= y <= top])
    ax.set_xlabel("density f")
    ax.set_ylabel("times faster than dense")
    ax.grid(True, lw=0.3, color="#DDDDDD")
    ax.legend(fontsize=6, frameon=False, loc="upper left", handlelength=1.8)
    text = f" + {size['text_tokens']} text" if size["text_tokens"] else ""
    kind = {"bfloat16": "bf16", "float32": "fp32"}.get(size["dtype"], size["dtype"])
    titled(
        ax,
        f"{size['video_tokens']:,}{text} tokens × {size['heads']} heads × {size['head_dim']}, {kind}",
    )


def _tokens(ax: Axes, found: dict[str, Any]) -> None:
    rows, slopes = found["sweep"], found["slopes"]
    x = [r["tokens"] for r in rows]
    looks = {
        "dense": ("best dense", BLACK, "o"),
        "window": (f"windows, f = {rows[0]['f']:g}", RED, "s"),
    }
    for key, (label, colour, marker) in looks.items():
        y = [1000 * r[key]["seconds"] for r in rows]
        label = f"{label}: slope {slopes[key]:.2f}"
        ax.loglog(x, y, "-", color=colour, marker=marker, ms=3.5, lw=1.1, label=label)
    ax.set_xticks(x, [f"{n / 1000:.{0 if n > 9999 else 1}f}k" for n in x])
    ax.xaxis.set_minor_locator(NullLocator())
    plain_numbers(ax, "y")
    ax.set_xlabel("video tokens")
    ax.set_ylabel("milliseconds")
    ax.grid(True, lw=0.3, color="#DDDDDD")
    ax.legend(fontsize=6, frameon=False, loc="upper left")
    titled(ax, "Cost against tokens")


# -- step ---------------------------------------------------------------------------------------


PARTS = (("blocks, double", BLUE, ""), ("blocks, single", SKY, "////"), ("rest", GREY, ""))


def step(found: dict[str, Any], path: Path) -> None:
    """Seconds of a step of the whole model, measured blocks scaled, beside the runtime model."""
    rows = found.get("rows", [])
    groups = list(dict.fromkeys((r["model"], r["size"]) for r in rows))
    if not groups:
        return
    figure, axes = panels([1.25] * len(groups))
    toy = " at toy width" if found["toy"] else ""
    for ax, (name, size) in zip(axes, groups, strict=True):
        own = [r for r in rows if (r["model"], r["size"]) == (name, size)]
        for j, r in enumerate(own):
            left = 0.0
            for value, (label, colour, hatch) in zip(_parts(r), PARTS, strict=True):
                style = {"hatch": hatch, "edgecolor": "white", "lw": 0.3}
                ax.barh(j, value, 0.62, left=left, color=colour, label=label, **style)
                left += value
            guess = r["estimate"]["seconds_at_achieved"]
            ax.plot([guess], [j], "D", color=RED, ms=3.5, label="FLOPs at the dense step's rate")
            place = {"va": "center", "fontsize": 6.5}
            ax.text(max(left, guess), j, f"  {r['ratio']:.2f}×", **place)
        ax.set_yticks(range(len(own)), [f"f = {r['f']:g}" if r["f"] < 1 else "dense" for r in own])
        bars(ax, 1.2 * max(r["step_seconds"] for r in own))
        titled(ax, f"{NAMES.get(name, name)}{toy}, {own[0]['video_tokens']:,} tokens")
    axes[-1].set_xlabel("seconds of one step of the whole model")
    above(figure, axes[0], 2)
    save(figure, path)


def _parts(r: dict[str, Any]) -> list[float]:
    """Seconds of the first kind of blocks, the second (0 if there is none), the rest."""
    blocks = [n * r["block_seconds"][k]["seconds"] for k, n in r["layers"].items()]
    return [*blocks, 0.0][:2] + [max(r["rest_seconds"]["seconds"], 0.0)]


# -- autoencoder --------------------------------------------------------------------------------


def vae(found: dict[str, Any], path: Path) -> None:
    """Seconds of every call, and its peak memory where it was measured, beside the runtime model."""
    rows = found.get("rows", [])
    if not rows:
        return
    memory = not found["small"]
    height = 0.55 + 0.2 * len(rows)
    figure, axes = panels([height] * (1 + memory))
    labels = [f"{NAMES[r['model']]} {r['size'].upper()} {r['work']}" for r in rows]
    whole = any(r["tile"] is None for r in rows) and any(r["tile"] for r in rows)
    if whole:
        labels = [
            f"{t}, {'tiles' if r['tile'] else 'whole'}" for t, r in zip(labels, rows, strict=True)
        ]
    pairs = [("seconds", lambda r: r["seconds"], lambda r: r["estimate"]["seconds"])]
    if memory:
        pairs.append(
            ("peak memory, GiB", lambda r: r["peak_gib"], lambda r: r["estimate"]["peak_gib"])
        )
    for ax, (title, measured, estimate) in zip(axes, pairs, strict=True):
        places = range(len(rows))
        colours = [BLUE if r["work"] == "decode" else SKY for r in rows]
        ax.barh(places, [measured(r) for r in rows], 0.62, color=colours)
        ax.plot([estimate(r) for r in rows], places, "D", color=RED, ms=3.5, label="s2flow.costs")
        ax.set_yticks(places, labels)
        bars(ax, 1.08 * max(max(measured(r), estimate(r)) for r in rows))
        ax.set_xlabel(title)
        ax.legend(fontsize=6, frameon=False, loc="best")
    first, toy = rows[0], ", toy width" if found["toy"] else ""
    sizes = dict.fromkeys(f"{h}×{w}×{r['frames']}" for r in rows for h, w in [r["pixels"]])
    titled(axes[0], ", ".join(list(sizes)[:4]) + toy + ("" if first["tile"] else ", untiled"))
    save(figure, path)


# -- whole clips --------------------------------------------------------------------------------


def pipeline(found: dict[str, Any], path: Path) -> None:
    """Stacked stages of every method, the speed-up over native beside it, and the model's."""
    rows = found.get("rows", [])
    if not rows:
        return
    figure, (ax,) = panels([1.2 + 0.22 * len(rows)])
    longest, left = max(r["seconds"] for r in rows), [0.0] * len(rows)
    for name, (colour, hatch) in STAGES.items():
        values = [r["stages"].get(name, {"seconds": 0.0})["seconds"] for r in rows]
        if max(values) < longest / 200:  # too thin to be seen
            continue
        style = {"hatch": hatch, "edgecolor": "white", "lw": 0.3, "color": colour}
        ax.barh(range(len(rows)), values, 0.66, left=left, label=NAMES.get(name, name), **style)
        left = [a + b for a, b in zip(left, values, strict=True)]
    guess = [r["model"]["seconds"] for r in rows]
    ax.plot(guess, range(len(rows)), "D", color=RED, ms=3.5, label="runtime model")
    for i, r in enumerate(rows):
        text = f"  {r['ratio']:.2f}× ({r['model']['ratio']:.2f}×)"
        ax.text(max(left[i], guess[i]), i, text, va="center", fontsize=6.5)
    ax.set_yticks(range(len(rows)), [r["variant"] for r in rows])
    bars(ax, 1.65 * max(longest, *guess))
    ax.set_xlabel("seconds a clip; × faster than native\n(in brackets: by the runtime model)")
    above(figure, ax, 4)
    shape = found["shapes"]
    (h, w), frames = shape["high"], shape["frames"]
    name = NAMES.get(found["backbone"], found["backbone"]) + " (toy width)" * found["toy"]
    titled(ax, f"{name}, {h}×{w}×{frames}, {shape['steps']} steps, $t_i$ = {shape['t_i']}")
    save(figure, path)


if __name__ == "__main__":
    main()
