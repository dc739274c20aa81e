"""Pictures of the benchmarks, from their JSON files: one function for each, named like its script.

    python experiments/bench_plots.py FILE.json ...     # PNG and PDF beside each file

For files that came from a machine without matplotlib, and after a change here. Column width (3.4
inches), a marker or hatch of its own for each series.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import figures
from figures import plt
from matplotlib.axes import Axes

BACKENDS = {  # name -> colour, marker
    "fa4": (figures.GREEN, "D"),
    "triton": (figures.BLUE, "o"),
    "flex": (figures.PINK, "^"),
    "tiled": (figures.RED, "s"),
}
STAGES = {  # name -> colour, hatch
    "text": (figures.GREY, ""),
    "lr": (figures.SKY, ""),
    "plan": (figures.BLACK, ""),
    "handoff": (figures.YELLOW, "////"),
    "hr": (figures.BLUE, ""),
    "decode": (figures.ORANGE, ""),
    "preview": (figures.PINK, "...."),
    "diagnostics": ("#BBBBBB", "xxxx"),
}
PARTS = {
    "blocks, double": (figures.BLUE, ""),
    "blocks, single": (figures.SKY, "////"),
    "rest": (figures.GREY, ""),
}
NAMES = {"hunyuan": "HunyuanVideo", "wan_1_3b": "Wan 1.3B", "handoff": "hand-off"}
GUESS = {"color": figures.RED, "marker": "D", "ls": "none"}


def main() -> None:
    """Draw every file named."""
    if len(sys.argv) < 2:
        sys.exit("error: no file; type python experiments/bench_plots.py results/bench_X.json")
    for path in map(Path, sys.argv[1:]):
        kind = path.stem.split("_")[1] if path.stem.startswith("bench_") else ""
        if kind not in DRAW or not path.exists():
            sys.exit(f"error: {path} is no benchmark's file; type one of results/bench_*.json")
        DRAW[kind](json.loads(path.read_text()), path.with_suffix(""))


def _panels(heights: list[float]) -> tuple[Any, list[Axes]]:
    """A figure of column width with one panel below the other."""
    size = {"figsize": (figures.COLUMN, sum(heights)), "height_ratios": heights}
    figure, axes = plt.subplots(len(heights), **size, squeeze=False, layout="constrained")
    return figure, list(axes[:, 0])


def _above(figure: Any, ax: Axes, columns: int) -> None:
    """The legend of one panel over the whole figure, each label once."""
    handles, labels = ax.get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    look = {"fontsize": 6, "columnspacing": 1.2, "handlelength": 1.4}
    figure.legend(known.values(), known, ncols=columns, loc="outside upper center", **look)


def _bar(
    ax: Axes, y: int, parts: dict[str, float], looks: dict, guess: float, label: str, text: str
) -> None:
    """One horizontal bar of stacked parts, the runtime model's mark, and a text behind both."""
    end = 0.0
    for name, length in parts.items():
        colour, hatch = looks[name]
        style = {"color": colour, "hatch": hatch, "edgecolor": "white", "lw": 0.3}
        ax.barh(y, length, 0.66, left=end, label=NAMES.get(name, name), **style)
        end += length
    ax.plot([guess], [y], label=label, **GUESS)
    ax.text(max(end, guess), y, f"  {text}", va="center", fontsize=6.5)


def _rows(ax: Axes, labels: list[str], right: float) -> None:
    """Names of horizontal bars, the first one on top."""
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.set_xlim(0, right)
    ax.grid(True, axis="x")


def attention(result: dict[str, Any], path: Path) -> None:
    """Speed-up over the best dense kernel by density, a panel a size; seconds against tokens."""
    names = [n for n in result["sizes"] if any(r["size"] == n for r in result.get("rows", []))]
    swept = len(result.get("sweep", [])) > 1
    if not names and not swept:
        return
    figure, axes = _panels([2.3] * len(names) + [1.9] * swept)
    for name, ax in zip(names, axes, strict=False):
        _speed_up(ax, result, name)
    if swept:
        _tokens(axes[-1], result)
    figures.write(figure, path)


def _speed_up(ax: Axes, result: dict[str, Any], name: str) -> None:
    rows = [r for r in result["rows"] if r["size"] == name and r["backend"] in BACKENDS]
    rows.sort(key=lambda r: r["density"])
    least = rows[0]["density"]
    ax.plot([least, 1], [1 / least, 1], "--", color=figures.GREY, lw=0.8, label="1/f")
    for backend, (colour, marker) in BACKENDS.items():
        own = [r for r in rows if r["backend"] == backend]
        mixed = [r for r in own if r["group"] == "mixed"]
        shapes = [r for r in own if r["group"] != "mixed" and r["windows"] != "whole grid"]
        for label, points, look in (
            (backend, [r for r in mixed if not r["ordered"]], {"marker": marker}),
            (f"{backend}, in brick order", [r for r in mixed if r["ordered"]], {"ls": ":"}),
            (f"{backend}, one shape", shapes, {"marker": "_", "ls": "none", "alpha": 0.7}),
        ):
            if points:
                x, y = ([r[k] for r in points] for k in ("density", "ratio"))
                ax.plot(x, y, color=colour, label=label, **look)
    ax.axhline(1, color=figures.BLACK, lw=0.6)
    ax.set(xscale="log", yscale="log", xlabel="density f", ylabel="times faster than dense")
    ax.invert_xaxis()
    densities = (1, 0.5, 0.25, 0.125, 0.0625, 0.03, 0.0156)
    figures.plain_numbers(ax, "x", [d for d in densities if d > least * 0.9])
    ratios = [r["ratio"] for r in rows]
    low, top = min(0.8, 0.9 * min(ratios)), max(1.2 / least, 1.2 * max(ratios))
    ax.set_ylim(low, top)
    figures.plain_numbers(ax, "y", [2.0**k for k in range(-2, 7) if low <= 2.0**k <= top])
    ax.grid(True)
    ax.legend(fontsize=6, loc="upper left", handlelength=1.8)
    size = result["sizes"][name]
    text = f" + {size['text_tokens']} text" if size["text_tokens"] else ""
    kind = {"bfloat16": "bf16", "float32": "fp32"}.get(size["dtype"], size["dtype"])
    shape = f"{size['video_tokens']:,}{text} tokens × {size['heads']} heads × {size['head_dim']}"
    ax.set_title(f"{shape}, {kind}")


def _tokens(ax: Axes, result: dict[str, Any]) -> None:
    rows, slopes = result["sweep"], result["slopes"]
    x = [r["tokens"] for r in rows]
    windows = f"windows, f = {rows[0]['f']:g}"
    for key, label, colour, marker in (
        ("dense", "best dense", figures.BLACK, "o"),
        ("window", windows, figures.RED, "s"),
    ):
        y = [1000 * r[key]["seconds"] for r in rows]
        ax.loglog(x, y, color=colour, marker=marker, label=f"{label}: slope {slopes[key]:.2f}")
    figures.plain_numbers(ax, "x", x)
    ax.set_xticklabels([f"{n / 1000:.{0 if n > 9999 else 1}f}k" for n in x])
    figures.plain_numbers(ax, "y")
    ax.set(xlabel="video tokens", ylabel="milliseconds", title="Cost against tokens")
    ax.grid(True)
    ax.legend(fontsize=6, loc="upper left")


def step(result: dict[str, Any], path: Path) -> None:
    """Seconds of a step of the whole model, measured blocks scaled, beside the runtime model."""
    groups: dict[tuple, list] = {}
    for r in result.get("rows", []):
        groups.setdefault((r["model"], r["size"]), []).append(r)
    if not groups:
        return
    figure, axes = _panels([1.25] * len(groups))
    toy = " at toy width" if result["toy"] else ""
    for ax, ((model, _), rows) in zip(axes, groups.items(), strict=True):
        for y, r in enumerate(rows):
            blocks = [n * r["block_seconds"][k]["seconds"] for k, n in r["layers"].items()]
            lengths = [*blocks, 0.0][:2] + [max(r["rest_seconds"]["seconds"], 0.0)]
            parts, guess = dict(zip(PARTS, lengths, strict=True)), r["estimate"]
            words = ("FLOPs at the dense step's rate", f"{r['ratio']:.2f}×")
            _bar(ax, y, parts, PARTS, guess["seconds_at_achieved"], *words)
        names = [f"f = {r['f']:g}" if r["f"] < 1 else "dense" for r in rows]
        _rows(ax, names, 1.2 * max(r["step_seconds"] for r in rows))
        ax.set_title(f"{NAMES.get(model, model)}{toy}, {rows[0]['video_tokens']:,} tokens")
    axes[-1].set_xlabel("seconds of one step of the whole model")
    _above(figure, axes[0], 2)
    figures.write(figure, path)


def vae(result: dict[str, Any], path: Path) -> None:
    """Seconds of every call, and its peak memory where it was measured, beside the runtime model."""
    rows = result.get("rows", [])
    if not rows:
        return
    keys = {"seconds": "seconds"} | ({} if result["small"] else {"peak_gib": "peak memory, GiB"})
    figure, axes = _panels([0.55 + 0.2 * len(rows)] * len(keys))
    labels = [f"{NAMES[r['model']]} {r['size'].upper()} {r['work']}" for r in rows]
    if len({r["tile"] is None for r in rows}) > 1:
        tiles = [", tiles" if r["tile"] else ", whole" for r in rows]
        labels = list(map(str.__add__, labels, tiles))
    colours = [figures.BLUE if r["work"] == "decode" else figures.SKY for r in rows]
    for ax, (key, title) in zip(axes, keys.items(), strict=True):
        measured, estimate = [r[key] for r in rows], [r["estimate"][key] for r in rows]
        ax.barh(range(len(rows)), measured, 0.62, color=colours)
        ax.plot(estimate, range(len(rows)), label="s2flow.costs", **GUESS)
        _rows(ax, labels, 1.08 * max(measured + estimate))
        ax.set_xlabel(title)
        ax.legend(fontsize=6, loc="best")
    toy = ", toy width" if result["toy"] else ""
    sizes = dict.fromkeys(f"{h}×{w}×{r['frames']}" for r in rows for h, w in [r["pixels"]])
    axes[0].set_title(", ".join(list(sizes)[:4]) + toy + ("" if rows[0]["tile"] else ", untiled"))
    figures.write(figure, path)


def pipeline(result: dict[str, Any], path: Path) -> None:
    """Stacked stages of every method, the speed-up over native beside it, and the model's."""
    rows = result.get("rows", [])
    if not rows:
        return
    figure, (ax,) = _panels([1.2 + 0.22 * len(rows)])
    longest = max(r["seconds"] for r in rows)
    seconds = {s: [r["stages"].get(s, {"seconds": 0.0})["seconds"] for r in rows] for s in STAGES}
    shown = [s for s in STAGES if max(seconds[s]) >= longest / 200]  # others are too thin
    for y, r in enumerate(rows):
        guess, parts = r["model"], {s: seconds[s][y] for s in shown}
        text = f"{r['ratio']:.2f}× ({guess['ratio']:.2f}×)"
        _bar(ax, y, parts, STAGES, guess["seconds"], "runtime model", text)
    longest = max(longest, *(r["model"]["seconds"] for r in rows))
    _rows(ax, [r["variant"] for r in rows], 1.65 * longest)
    ax.set_xlabel("seconds a clip; × faster than native\n(in brackets: by the runtime model)")
    _above(figure, ax, 4)
    shape = result["shapes"]
    (h, w), frames = shape["high"], shape["frames"]
    name = NAMES.get(result["backbone"], result["backbone"]) + " (toy width)" * result["toy"]
    ax.set_title(f"{name}, {h}×{w}×{frames}, {shape['steps']} steps, $t_i$ = {shape['t_i']}")
    figures.write(figure, path)


DRAW = {"attention": attention, "step": step, "vae": vae, "pipeline": pipeline}

if __name__ == "__main__":
    main()
