# %% [markdown]
"""
# Locality of attention (Figure 3)

The paper's Figure 3 shows that attention at low resolution (LR) is sparse and local, in every head in
its own way. Here, of one clip: attention by distance, and maps of one query. The windows that follow
from it are in `window_maps.py`.

The clips and their LR flows are made by

    python run.py experiment=figure3

As a script: `python analysis/attention_maps.py [--runs RUNS] [--out OUT]`. Runs of the embedded
backbone show how a toy model attends, not how the paper's models do.
"""

# %%
import numpy as np
from figure3 import AXES, attention_at, by_distance, clip_to_show, has_its_model, telling_heads
from style import GREY, PAGE, folders, headed, plt, save, spread

RUNS, OUT = folders(__doc__)
EXPERIMENT = f"python run.py experiment=figure3 runs_dir={RUNS}"

RECORD, FLOW, _ = clip_to_show(RUNS)
STEP = RECORD and (RECORD["recipe"]["t_i"] + 1) // 2  # halfway through the HR flow
MEASURED = None
if FLOW is None:
    print(f"no clip with windows whose LR flow is in lr_cache; make some: {EXPERIMENT}")
elif not has_its_model(RECORD):
    print(f"attention is measured with embedded models only, so with runs of: {EXPERIMENT}")
else:
    MEASURED = attention_at(RECORD, FLOW, STEP)  # tokens, query rows, attention

# %% [markdown]
"""
## Where attention goes at LR

The latent of one LR step goes through the model once more, and q and k of every layer are observed.
Left to right: how often a key at some distance in time, height or width is attended, against all keys
alike (dashed). Above the dashed line attention seeks that distance, below it avoids it. Were attention
local in all axes and layers, every curve would fall from left to right; where one does not, a window
that is short along this axis costs much.
"""


# %%
def draw_locality(tokens, rows, A):
    """A panel per axis, a line per layer (up to 8): the mean of its heads."""
    figure, panels = plt.subplots(1, 3, figsize=(PAGE, 1.9), sharey=True, layout="constrained")
    layers = spread(len(A), 8)
    for axis, panel in enumerate(panels):
        attention = by_distance(tokens, rows, A, axis)
        for i, layer in enumerate(layers):
            colour = plt.get_cmap("viridis")(0.9 * i / max(len(layers) - 1, 1))
            mean = attention[layer].mean(0)
            panel.plot(mean, marker="osD^vP*X"[i], color=colour, label=f"layer {layer}")
        panel.axhline(1, color=GREY, dashes=(4, 2), lw=0.8, label="all keys alike")
        panel.set(xlabel=f"distance in {AXES[axis]}, LR tokens")
        panel.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set(ylabel="attention of a key,\nover that of an average key", ylim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    headed(figure, RECORD, f", {STEP} LR steps remaining")
    save(figure, OUT / "attention_locality")


if MEASURED:
    draw_locality(*MEASURED)

# %% [markdown]
"""
## One query and all keys

One query in the middle of the clip (outlined), and how much it attends to every key: a small picture
for each latent frame, a row for each of four heads: those that are most local in time, in height and
in width (by the average over all queries), and the one that spreads most evenly. Every row has its own
scale, which ends at the value on its right, again over that of an average key. What is local on average
need not look at itself: a head may look beside it, or at the same place in other frames.
"""


# %%
def draw_maps(tokens, rows, A):
    """Rows: telling heads; columns: latent frames, at most 12 of them."""
    place = int(np.argmin(abs(rows - np.ravel_multi_index([n // 2 for n in tokens], tokens))))
    query = np.unravel_index(rows[place], tokens)
    frames = spread(tokens[0], 12)
    frames = np.unique(np.append(frames, query[0]))
    heads = telling_heads(tokens, rows, A)
    high = PAGE / len(frames) * tokens[1] / tokens[2] * 0.85 + 0.08
    size = (PAGE, 0.45 + len(heads) * high)
    figure, grid = plt.subplots(len(heads), len(frames), figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    for line, (name, (layer, head)) in zip(grid, heads.items(), strict=True):
        one = A[layer, head, place].reshape(tokens)
        top = one.max()
        for panel, frame in zip(line, frames, strict=True):
            panel.imshow(one[frame], vmin=0, vmax=top, cmap="cividis", interpolation="none")
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
            if frame == query[0]:
                corner = (query[2] - 0.5, query[1] - 0.5)
                panel.add_patch(plt.Rectangle(corner, 1, 1, fill=False, ec="white", lw=1))
        words = f"{name}\nlayer {layer}\nhead {head}"
        line[0].set_ylabel(words, rotation=0, ha="right", va="center")
        line[-1].yaxis.set_label_position("right")
        times = f"{top / one.mean():.0f}×"
        line[-1].set_ylabel(times, rotation=0, ha="left", va="center", color="#555555")
    for panel, frame in zip(grid[0], frames, strict=True):
        panel.set_title(f"frame {frame}", loc="center", color="#555555", pad=3)
    headed(figure, RECORD, f", {STEP} LR steps remaining")
    save(figure, OUT / "attention_of_one_query")


if MEASURED:
    draw_maps(*MEASURED)
