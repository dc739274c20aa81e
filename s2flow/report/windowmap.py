"""The windows of a finished clip by layer, head and HR step, and a picture of them (Figure 3).

    runs/<run_id>/windows/<key>.npz
        steps   (n,)                     steps remaining, t_i ... 1
        boxes   (n, layers, heads, 3)    window of each head, in bricks (t, h, w); uint8 if it fits
        grid    (n, 3)                   the whole grid in bricks; it grows between several HR sizes

Clips whose windows are no boxes (methods without windows, `moba`) and old clips have no such file.
"""

import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Windows = dict[str, np.ndarray]
# Okabe and Ito's colours for colour-blind readers; grey for rarer windows
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7A5195")
RARER, INK, PAPER = "#BBBBBB", "#222222", "#FFFFFF"


def save_windows(path: Path, windows: dict[str, Any]) -> None:
    """Write `Generated.windows` of one clip as .npz."""
    largest = int(windows["grid"].max())
    small = np.uint8 if largest < 256 else np.uint16
    arrays = {k: np.asarray(v, np.int16 if k == "steps" else small) for k, v in windows.items()}
    np.savez_compressed(path, **arrays)


def read_windows(folder: str | Path, record: dict[str, Any]) -> Windows | None:
    """steps, boxes and grid of a clip of the run in `folder`; None without a complete file."""
    path = Path(folder) / "windows" / f"{Path(record['video']).stem}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ("steps", "boxes", "grid")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def in_words(windows: Windows) -> tuple[np.ndarray, dict[str, str], list[tuple[str, str]]]:
    """The windows as (n, layers, heads) words, the colour of each word, and a legend.

    legend: (colour, "8x4x3  41%"), the most frequent first. Clips with the same windows have the
    same colours; windows beyond the number of colours have none and are counted as others.
    """
    boxes, grid = windows["boxes"], windows["grid"]
    words = np.empty(boxes.shape[:3], object)
    for at in np.ndindex(words.shape):
        whole = (boxes[at] == grid[at[0]]).all()
        words[at] = "whole grid" if whole else "x".join(map(str, boxes[at]))
    counts = Counter(words.ravel()).most_common()
    often, rare = counts[: len(COLOURS)], counts[len(COLOURS) :]
    colour = dict(zip(sorted(w for w, _ in often), COLOURS, strict=False))
    legend = [(colour[w], f"{w}  {c / words.size:.0%}") for w, c in often]
    if rare:
        share = sum(c for _, c in rare) / words.size
        legend.append((RARER, f"{len(rare)} others  {share:.0%}"))
    return words, colour, legend


def window_picture(windows: Windows, title: str = "") -> Image.Image:
    """A row per layer and head, a column per HR step, a colour per window; the legend counts them."""
    words, colour, legend = in_words(windows)
    n, layers, heads = words.shape
    title = title if len(title) <= 72 else title[:71] + "…"
    wide, high = max(320 // n, 8), max(240 // (layers * heads), 2)
    font = ImageFont.load_default(13)
    left, top, line, block = 66, 30, 19, heads * high
    width, height = n * wide, layers * block
    needed = max(font.getlength(t) for _, t in legend)
    full_width = int(max(left + width + 44 + needed, 16 + font.getlength(title)))
    tall = max(height, len(legend) * line)
    picture = Image.new("RGB", (full_width, top + tall + 40), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((8, 6), title, INK, font)
    for i, layer, head in np.ndindex(words.shape):
        x, y = left + i * wide, top + layer * block + head * high
        shade = colour.get(words[i, layer, head], RARER)
        draw.rectangle((x, y, x + wide - 1, y + high - 1), shade)
    every = -(-line // block)  # layers whose names would run into each other are not named
    for layer in range(layers):
        y = top + layer * block
        if layer:
            draw.line((left, y, left + width - 1, y), PAPER)
        if layer % every == 0:
            draw.text((8, y + max(block - line, 0) / 2), f"layer {layer}", INK, font)
    every = -(-30 // wide)
    for i in range(0, n, every):
        draw.text((left + i * wide + 1, top + height + 3), str(windows["steps"][i]), INK, font)
    draw.text((left, top + height + 19), "HR steps remaining; heads are rows", INK, font)
    for i, (shade, text) in enumerate(legend):
        x, y = left + width + 14, top + i * line
        draw.rectangle((x, y + 3, x + 11, y + 14), shade)
        draw.text((x + 18, y), text, INK, font)
    return picture
