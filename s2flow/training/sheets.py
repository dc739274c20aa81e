"""A sheet of generated clips and their renders, to inspect while a backbone trains."""

import random
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

import s2flow
from s2flow.embedded import backbone as tiny
from s2flow.embedded.render import render
from s2flow.embedded.world import WORLDS, all_captions_cached, held_out_captions, place

ROWS = {
    "native": {"method": "native"},
    "cascade": {"method": "cascade"},
    "s2flow s=.5": {"sparsity": 0.5},
}


def draw(name: str, weights: Path, folder: Path, step: int, prompts: int = 6) -> Path:
    """Write folder/STEP.png: rows truth, LR, native, cascade, windows; a column per prompt."""
    backbone = tiny.load(name, "cpu", weights)
    captions = held_out_captions(WORLDS[name], prompts, seed=1)
    results = {row: s2flow.generate(backbone, captions, **knobs) for row, knobs in ROWS.items()}
    shape = results["cascade"].frames.shape[1:4]
    scenes = [place(all_captions_cached(WORLDS[name])[t], random.Random(0)) for t in captions]
    rows = {"truth": render(scenes, shape[1], shape[2], shape[0])}
    rows["LR"] = torch.from_numpy(results["cascade"].low_frames)
    rows |= {row: torch.from_numpy(result.frames) for row, result in results.items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{step:06d}.png"
    table(rows, captions).save(path)
    return path


def table(rows: dict[str, Tensor], texts: list[str], columns: int = 8) -> Image.Image:
    """The middle frame of each clip (N, T, H, W, 3), a row per name, in blocks of so many clips."""
    width, height = 192, 128
    blocks = [range(k, min(k + columns, len(texts))) for k in range(0, len(texts), columns)]
    size = (min(columns, len(texts)) * (width + 4), len(blocks) * len(rows) * (height + 16))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    lines = [(name, videos, block) for block in blocks for name, videos in rows.items()]
    for j, (name, videos, block) in enumerate(lines):
        pen.text((2, j * (height + 16) + 2), name, fill="black")
        for i, k in enumerate(block):
            frame = (videos[k][len(videos[k]) // 2] * 255).round().byte().numpy()
            image = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(image, (i * (width + 4), j * (height + 16) + 14))
    return sheet
