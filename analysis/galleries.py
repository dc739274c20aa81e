# %% [markdown]
"""
# Clips side by side (Figures 4 and 5)

The paper judges by eye: its Figure 4 sets S²Flow beside other methods; its Figure 5 sets full attention
(a) beside windows (b) and windows with the second-order solver (c). Here are frames of whatever clips
exist, made by

    python run.py experiment=figure5

As a script: `python analysis/galleries.py [--runs RUNS] [--out OUT]`. One frame says nothing of motion,
and few prompts prove nothing: the page of `python -m s2flow.report RUNS` plays clips side by side and
lets you vote blind, and `tables.py` has the scores. Clips of the embedded backbone are small pictures
of a toy world, in which the paper's failures need not show.
"""

# %%
import textwrap

import numpy as np
from style import ORANGE, PAGE, folders, plt, save

# isort: split
import gallery_clips as of
from matplotlib.patches import Rectangle
from notes import EMBEDDED
from PIL import Image

RUNS, OUT = folders(__doc__)
EXPERIMENT = f"python run.py experiment=figure5 runs_dir={RUNS}"
GAP, LINE, HEAD = 0.03, 0.13, 0.62  # inches: between pictures, of a line of text, of the head
WIDEST = 600  # pixels; wider frames are shrunk, crops are not
GROUP, FITTING = of.group_with_most(RUNS)

# %% [markdown]
"""
## The sheet

A row for each prompt, the middle frame of each clip, pixels as they are in the mp4 (frames wider than
600 pixels are shrunk to that; crops never are). The small grey line says whose clips these are.
"""


# %%
def shown(image):
    """A frame no wider than WIDEST."""
    height, width = image.shape[:2]
    if width <= WIDEST:
        return image
    size = (WIDEST, round(height * WIDEST / width))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def draw_sheet(name, titles, lines, every=1):
    """lines: (prompt, pictures (H, W, 3) or None, box to outline in each or None) of every row.

    titles: lines over every `every`-th picture. All pictures are shown at one size; a pixel of the
    first is a whole number of dots in the PNG.
    """
    n = max(len(pictures) for _, pictures, _ in lines)
    first = next(p for _, pictures, _ in lines for p in pictures if p is not None)
    width = (PAGE - (n - 1) * GAP) / n
    high = width * first.shape[0] / first.shape[1]
    texts = [textwrap.wrap(textwrap.shorten(prompt, 250), 125) for prompt, _, _ in lines]
    tall = HEAD + sum(LINE * len(text) + high + 3 * GAP for text in texts)
    figure = plt.figure(figsize=(PAGE, tall))
    write = {"va": "top", "parse_math": False}
    backbone, steps = GROUP[:2]
    toy = " (embedded toy model)" if backbone in EMBEDDED else ""
    size = "{}×{}×{} (h×w×frames)".format(*GROUP[2:])
    figure.text(0, 1, f"{backbone}{toy}, {size}, {steps} steps", size=6, c="#555555", **write)
    for j, title in enumerate(titles):
        at = j * every * (width + GAP) / PAGE
        for k, words in enumerate(title):
            look = {"size": 6, "color": "#555555"} if k else {"size": 7}
            figure.text(at, 1 - LINE * (2 + k) / tall, words, parse_math=False, **look)
    top = tall - HEAD
    for text, (_, pictures, boxes) in zip(texts, lines, strict=True):
        figure.text(0, top / tall, "\n".join(text), size=6, style="italic", c="#333333", **write)
        top -= LINE * len(text) + high
        for j, (picture, box) in enumerate(zip(pictures, boxes, strict=True)):
            place = (j * (width + GAP) / PAGE, top / tall, width / PAGE, high / tall)
            draw_picture(figure.add_axes(place, frameon=False), picture, box)
        top -= 3 * GAP
    dots = max(-(-220 * width // first.shape[1]), 1)
    save(figure, OUT / name, dpi=dots * first.shape[1] / width)


def draw_picture(panel, picture, box):
    """One picture without smoothing; box: (top, left, height, width) in shares of it."""
    panel.set(xticks=[], yticks=[])
    if picture is None:
        panel.text(0.5, 0.5, "no clip", ha="center", va="center", transform=panel.transAxes)
        return
    panel.imshow(picture, interpolation="none", aspect="auto", extent=(0, 1, 1, 0))
    if box is not None:
        y, x, h, w = box
        panel.add_patch(Rectangle((x, y), w, h, fill=False, ec=ORANGE, lw=0.8))


def title_of(label, run):
    """Whose pictures stand below: label, run, and the share of the volume that windows keep."""
    s, density = run.knobs["sparsity"], run.knobs["density"]
    return label, run.id, f"s = {s:g}, {density}" if s else ""


# %% [markdown]
"""
## Figure 4: methods

LR is the clip that all others but `native` start from; `bicubic` only enlarges it. To be looked for: a
method that repeats the object or tears it apart (the known failure of `native` above the trained
size), one that is blurred like `bicubic`, one that changes what the LR clip shows.
"""


# %%
def draw_figure4(runs, clips):
    """LR, from the first of the runs that kept it, and a column per method."""
    titles = [("LR",), *(title_of(*run) for run in runs.items())]
    lines = []
    for prompt, _, key in clips:
        frames = [of.middle_frame(RUNS, run.id, key) for run in runs.values()]
        low = (of.middle_frame(RUNS, run.id, key, low=True) for run in runs.values())
        pictures = [next((f for f in low if f is not None), None), *frames]
        pictures = [f if f is None else shown(f) for f in pictures]
        lines.append((prompt, pictures, [None] * len(pictures)))
    draw_sheet("gallery_methods", titles, lines)


METHODS_SHOWN = of.figure4_runs(FITTING)
if LACKING := [m for m in of.METHODS if m not in METHODS_SHOWN]:
    print(f"no clips of {', '.join(LACKING)}; make some: {EXPERIMENT}")
if METHODS_SHOWN:
    draw_figure4(METHODS_SHOWN, of.shared_clips(METHODS_SHOWN, most=6))

# %% [markdown]
"""
## Figure 5: windows, and the order of the solver

Beside each frame the part, a quarter of each side, with the most detail in (a), outlined. To be looked
for: what windows lose between (a) and (b), and whether order 2 brings it back in (c), as the paper
says.
"""


# %%
def draw_figure5(runs, clips):
    """Frame and crop of each of the runs, the same crop for all."""
    lines = []
    for prompt, _, key in clips:
        frames = [of.middle_frame(RUNS, run.id, key) for run in runs.values()]
        whole = next((f for f in frames if f is not None), None)
        if whole is None:
            continue
        y, x, h, w = of.crop_of(whole)
        box = tuple(np.array([y, x, h, w]) / np.tile(whole.shape[:2], 2))
        pairs = [
            (None, None) if f is None else (shown(f), f[y : y + h, x : x + w]) for f in frames
        ]
        pictures = [picture for pair in pairs for picture in pair]
        lines.append((prompt, pictures, [box, None] * len(frames)))
    titles = [title_of(*run) for run in runs.items()]
    draw_sheet("gallery_order", titles, lines, every=2)


COMPARED = of.figure5_runs(FITTING)
if len(COMPARED) < 3:
    present = " ".join(COMPARED) or "nothing"
    print(f"Figure 5 has {present} of (a) (b) (c); make them: {EXPERIMENT}")
if COMPARED:
    draw_figure5(COMPARED, of.shared_clips(COMPARED, most=4))
