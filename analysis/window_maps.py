# %% [markdown]
"""
# The windows that LR attention chooses (Figure 3)

From low resolution's (LR) attention, see `attention_maps.py`, follows which window each head keeps at
high resolution (HR). Here, of one clip:

1. what each candidate window covers of it (Eq. 8), and which one is chosen (Eq. 9);
2. the windows as they ran, for every layer, head and HR step;
3. what that choice costs: how much more of HR's own attention HR's own choice covers.

The clips, with their LR flows, their windows and HR's own choice (`windows=oracle`), are made by

    python run.py experiment=figure3

As a script: `python analysis/window_maps.py [--runs RUNS] [--out OUT]`. Runs of the embedded
backbone show what a toy model needs, not what the paper's models do.
"""

# %%
import figure3
import numpy as np
import style
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from style import COLUMN, PAGE, folders, headed, plt, save, spread

from s2flow.report.windowmap import RARER, in_words

RUNS, OUT = folders(__doc__)
EXPERIMENT = f"python run.py experiment=figure3 runs_dir={RUNS}"
RECORD, FLOW, WINDOWS = figure3.clip_to_show(RUNS)
HEADS = ((style.BLUE, "o"), (style.ORANGE, "s"), (style.GREEN, "D"), (style.PINK, "^"))

# %% [markdown]
"""
## What each candidate window covers

All candidates of Eq. 9 keep the same share f of the volume and differ in shape: bricks in (t, h, w).
Above: the attention that each of them covers (Eq. 8), by layer and head; the chosen one has a dot.
Below: the most that any box up to some volume covers, and the candidates at f. The further a
curve lies above the dashed line, where boxes cover what their volume is worth, the less a window of
this head loses; candidates far under the curve of their head are shapes that do not suit it.
"""


# %%
def draw_candidates(panel, boxes, of_each, chosen, layers, heads):
    """A row per candidate, a column per head of each layer."""
    table = of_each[layers][:, heads].reshape(-1, len(boxes)).T
    best = chosen[layers][:, heads].ravel()
    image = panel.imshow(table, cmap="cividis", aspect="auto", interpolation="none")
    shade = np.where(image.norm(table[best, range(len(best))]) > 0.6, "black", "white")
    panel.scatter(range(len(best)), best, c=shade, s=6)
    panel.set_yticks(range(len(boxes)), ["×".join(map(str, box)) for box in boxes])
    middle = np.arange(len(layers)) * len(heads) + (len(heads) - 1) / 2
    panel.set_xticks(middle, [f"layer {i}" for i in layers])
    panel.tick_params(length=0)
    for x in middle[1:]:
        panel.axvline(x - len(heads) / 2, color="white", lw=1.5)
    plt.colorbar(image, ax=panel, pad=0.01, label="coverage")


def draw_coverage(record, flow, n):
    """The table of candidates, and under it a panel per layer (up to 6) with up to 4 heads."""
    boxes, of_each, chosen = figure3.candidates_at(record, flow, n)
    r = flow.coverage[n, :, 0].numpy()
    layers, heads = spread(r.shape[0], 6), spread(r.shape[1], len(HEADS))
    figure = plt.figure(figsize=(PAGE, 3.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.2))
    draw_candidates(upper.subplots(), boxes, of_each, chosen, layers, heads)
    panels = lower.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    f = [np.prod(box) / np.prod(flow.bricks) for box in boxes]
    edge = {"ms": 3.5, "mec": style.BLACK, "mew": 0.4, "ls": "none"}
    for panel, layer in zip(panels, layers, strict=True):
        for head, (colour, mark) in zip(heads, HEADS, strict=False):
            panel.plot(*figure3.best_by_volume(r[layer, head]), color=colour, lw=0.9)
            panel.plot(f, of_each[layer, head], "_", color=colour, alpha=0.8, label="candidates")
            at, name = chosen[layer, head], f"head {head}"
            panel.plot(f[at], of_each[layer, head, at], mark, color=colour, label=name, **edge)
        look = {"color": style.GREY, "dashes": (4, 2), "lw": 0.8}
        panel.plot([0, 1], [0, 1], label="its volume's worth", **look)
        panel.set(title=f"layer {layer}", xlabel="share of volume", xticks=(0, 0.5, 1))
    panels[0].set(ylabel="coverage", ylim=(0, 1.02))
    lines, names = panels[0].get_legend_handles_labels()
    legend = dict(zip(names, lines, strict=True))  # each name once
    lower.legend(legend.values(), legend, loc="outside lower center", ncols=len(legend))
    headed(figure, record, f", {n} LR steps remaining")
    save(figure, OUT / "window_coverage")


if FLOW is None:
    print(f"no clip with windows whose LR flow is in lr_cache; make some: {EXPERIMENT}")
else:
    draw_coverage(RECORD, FLOW, (RECORD["recipe"]["t_i"] + 1) // 2)  # halfway through HR

# %% [markdown]
"""
## The chosen windows

What ran: a column for each HR step, a row for each head of each layer, a colour for each window, in
bricks (t × h × w), and how often it was chosen. Stripes along a row are heads that keep their window
throughout, so that a plan of one step would have done; changes of colour along a row are what the
choice per step is for.
"""


# %%
def draw_windows(record, windows):
    """Layers and heads × HR steps, in the colours of `s2flow.report.windowmap`."""
    words, colour, legend = in_words(windows)
    n, layers, heads = words.shape
    shades = [*dict.fromkeys([*colour.values(), RARER])]
    table = np.vectorize(lambda w: shades.index(colour.get(w, RARER)))(words)
    figure, panel = plt.subplots(figsize=(COLUMN, 2.6), layout="constrained")
    cells = table.reshape(n, -1).T
    look = {"cmap": ListedColormap(shades), "vmin": -0.5, "vmax": len(shades) - 0.5}
    panel.imshow(cells, aspect="auto", interpolation="none", **look)
    for y in range(heads, layers * heads, heads):
        panel.axhline(y - 0.5, color="white", lw=1)
    shown = spread(layers, 12)
    panel.set_yticks(shown * heads + (heads - 1) / 2, [f"layer {i}" for i in shown])
    steps = spread(n, 10)
    panel.set_xticks(steps, windows["steps"][steps])
    panel.tick_params(length=0)
    panel.set(xlabel="HR steps remaining", ylabel="heads, by layer")
    handles = [Patch(color=c, label=text.replace("x", "×")) for c, text in legend]
    panel.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), title="window, share")
    headed(figure, record)
    save(figure, OUT / "windows_chosen")


if WINDOWS is None:
    print(f"no clip has a file of its windows; make some: {EXPERIMENT}")
else:
    draw_windows(RECORD, WINDOWS)

# %% [markdown]
"""
## What LR's choice costs

Clips of `windows=oracle` choose by HR's own attention, step by step and layer by layer, and keep what
LR would have chosen beside it. Left: the regret, that is how much more of HR's attention HR's own
choice covers, on average over heads and clips. Right: what both choices cover in all. The closer the
lines, the better LR stands in for HR; how far they both lie above the dashed line, what attention
without any preference would give, is what windows of this volume can win at all.
"""


# %%
def draw_regret(clips):
    """The heat map of regret, and coverage by step beside it."""
    steps, layers, regret = figure3.regret_table(clips)
    own, guided, f = figure3.coverage_lines(clips, steps)
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.1), layout="constrained")
    image = left.imshow(
        regret, cmap="cividis", vmin=min(0, regret.min()), aspect="auto", interpolation="none"
    )
    plt.colorbar(image, ax=left, pad=0.02, label="regret, in coverage")
    shown = spread(len(steps), 10)
    left.set_xticks(shown, [steps[i] for i in shown])
    rows = spread(len(layers), 12)
    left.set_yticks(rows, [layers[i] for i in rows])
    left.tick_params(length=0)
    left.set(xlabel="HR steps remaining", ylabel="layer")
    right.plot(steps, own, "o-", color=style.BLUE, label="HR's own choice")
    right.plot(steps, guided, "s-", color=style.RED, label="LR's choice")
    right.plot(steps, f, color=style.GREY, dashes=(4, 2), label="attention without preference")
    right.set(xlabel="HR steps remaining", ylabel="coverage of HR attention", ylim=(0, 1))
    right.set_xlim(max(steps) + 0.3, min(steps) - 0.3)
    right.legend(loc="lower left")
    headed(figure, clips[0], f" and {len(clips) - 1} more clips" * (len(clips) > 1))
    save(figure, OUT / "window_regret")


ORACLE = figure3.oracle_clips(RUNS)
if ORACLE:
    draw_regret(ORACLE)
else:
    print(f"no clip of windows=oracle says its regret by layer; make some: {EXPERIMENT}")
