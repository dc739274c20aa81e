# %% [markdown]
"""
# Runtime (Figure 6)

Seconds of the LR and HR flows in blocks of 10 steps, stacked to whole clips, and what every stage of a
clip takes: measured here, published by the paper, and predicted by the runtime model
(`python -m s2flow.costs`). The clips are made by `python run.py experiment=figure6`.

One panel per machine and backbone, never two on one axis.
"""

# %%
from style import BLACK, BLUE, COLUMN, GREEN, ORANGE, PINK, RED, SKY, folders, plt, save, show

# isort: split
from itertools import cycle
from statistics import fmean

import timed
from script import markdown
from stored import lacking, records_by_run

from s2flow.costs.paper import paper_clock

runs, out = folders(__doc__)
COLOURS, MARKS = {"LR": SKY, "HR": ORANGE}, ("o", "s", "D", "^", "v", "P")
TONES = (BLACK, BLUE, RED, GREEN, PINK, ORANGE)


# %%
def digits(seconds):
    """Three of them."""
    return f"{seconds:#.3g}".rstrip(".") if seconds < 1000 else f"{seconds:.0f}"


def draw_blocks(ax, rows, title):
    """One bar per clip, in blocks of 10 steps, each with its seconds where they fit."""
    longest = max(sum(s for _, s in blocks) for _, blocks in rows)
    for y, (name, blocks) in enumerate(rows):
        at = 0
        for side, s in blocks:
            look = {"hatch": "////", "alpha": 0.55} if "model" in name else {}
            ax.barh(y, s, 0.7, at, color=COLOURS[side], edgecolor="white", lw=0.6, **look)
            if s > 0.075 * longest and not look:
                ax.text(at + s / 2, y, digits(s), ha="center", va="center", fontsize=5.5)
            at += s
        ax.text(at + 0.01 * longest, y, digits(at), va="center")
    ax.set_yticks(range(len(rows)), [name for name, _ in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(0, 1.13 * longest)
    ax.set_title(title)


def blocks_figure(panels):
    """panels: title -> (label, blocks) of every clip."""
    heights = [len(rows) + 1.5 for rows in panels.values()]
    size = {"figsize": (COLUMN, 0.25 + 0.24 * sum(heights)), "height_ratios": heights}
    figure, axes = plt.subplots(len(panels), squeeze=False, **size)
    for ax, (title, rows) in zip(axes[:, 0], panels.items(), strict=True):
        draw_blocks(ax, rows, title)
    axes[-1, 0].set_xlabel("seconds of the flows of one clip, in blocks of 10 steps")
    keys = [plt.Rectangle((0, 0), 1, 1, color=c) for c in COLOURS.values()]
    axes[-1, 0].legend(keys, COLOURS, loc="lower right", handlelength=1)  # by the short bars
    figure.tight_layout(pad=0.3)
    return figure


def show_table(title, head, rows):
    """A table of markdown below its title."""
    show("\n".join(["", title.replace("\n", ", "), "", *markdown(head, rows), ""]))


found = timed.timed_runs(records_by_run(runs))
clock = paper_clock()
panels = {}
for title, by_run in found.items():
    found[title] = timed.labelled(by_run)
    every = sum(by_run.values(), [])
    panels[title] = [(name, timed.flow_blocks(rs, every)) for name, rs in found[title].items()]
if not found:
    lacking("runs of Figure 6 with the seconds of every step", "experiment=figure6", runs)
own = timed.SETTING
size = "×".join(map(str, reversed(own["high_resolution"])))
title = f"{own['backbone']}, {size}, {own['frames']} frames\n{own['gpus']} (the paper)"
panels[title] = timed.paper_rows(clock)
save(blocks_figure(panels), out / "figure6_blocks")

# %% [markdown]
"""
Orange is HR, blue LR; hatched bars are the model's. The model takes the paper's seconds of 10 LR steps
as its yardstick and counts FLOPs: it meets the published native clip, and says under which reading of
"50 %" the published S2Flow time is possible at all. An embedded backbone has so few tokens at HR that
attention is a small share of a step, and windows that skip it cannot save what is not there.
"""


# %%
def per_ten(rows):
    """Mean seconds of 10 steps at LR and HR, and how often HR fits into native's."""
    cells, native = [], None
    for name, blocks in rows:
        low, high = ([s for side, s in blocks if side == k] for k in COLOURS)
        native = fmean(high) if name.startswith("native") else native
        gain = f"{native / fmean(high):.2f}" if native else ""
        cells.append((name, digits(fmean(low)) if low else "", digits(fmean(high)), gain))
    return cells


for name, rows in panels.items():
    show_table(name, ("seconds of 10 steps", "LR", "HR", "native HR / HR"), per_ten(rows))

# %% [markdown]
"""
## Stages of a clip

Seconds of each stage, on a logarithmic axis; `other` is text, preview and diagnostics. Here coverage is
recorded inside the LR flow, so `plan` is only the choice of windows; in the model `plan` is coverage.
The model's clip runs on the paper's GPUs at the rate that the paper's LR steps achieve, with the
autoencoder in float32 on one of them, as this implementation does it: compare its hand-off and
decoding with what Table 1 leaves for everything beside the transformer, printed below. Writing is not
in the model.
"""


# %%
def stages_figure(panels):
    """Dots on a logarithmic axis, one row per stage."""
    size = (COLUMN, 1.75 * len(panels) + 0.1)
    figure, axes = plt.subplots(len(panels), figsize=size, squeeze=False)
    for ax, (title, by_run) in zip(axes[:, 0], panels.items(), strict=True):
        for mark, colour, (name, of) in zip(cycle(MARKS), cycle(TONES), by_run.items()):
            y = [list(timed.STAGES).index(k) for k in of]
            ax.semilogx([*of.values()], y, mark, color=colour, mfc="none", label=name)
        ax.set_yticks(range(len(timed.STAGES)), timed.STAGES)
        ax.set_ylim(len(timed.STAGES) - 0.5, -0.5)
        ax.grid(True)
        ax.set_title(title)
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.2)
    axes[-1, 0].set_xlabel("seconds per clip")
    figure.tight_layout(pad=0.3)
    return figure


stages = {
    name: {who: timed.stage_seconds(rs) for who, rs in by_run.items()}
    for name, by_run in found.items()
}
stages[title.replace("(the paper)", "(runtime model)")] = timed.model_stages(clock)
save(stages_figure(stages), out / "figure6_stages")
for name, by_run in stages.items():
    cells = [(k, *(digits(f[k]) if k in f else "" for f in by_run.values())) for k in timed.STAGES]
    show_table(name, ("stage, s", *by_run), cells)
print(f"beside the transformer, by Table 1: {60 * clock.rest:.0f} s (MACS), ", end="")
print(f"{60 * clock.rest_of_s2flow:.0f} s (S2Flow)")
