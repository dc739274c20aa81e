"""A sheet of clips beside their renders, to look at while a backbone trains."""

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
    texts = held_out_captions(WORLDS[name], prompts, seed=1)
    made = {row: s2flow.generate(backbone, texts, **knobs) for row, knobs in ROWS.items()}
    shape = made["cascade"].frames.shape[1:4]
    scenes = [place(all_captions_cached(WORLDS[name])[t], random.Random(0)) for t in texts]
    rows = {"truth": render(scenes, shape[1], shape[2], shape[0])}
    rows["LR"] = torch.from_numpy(made["cascade"].low_frames)
    rows |= {row: torch.from_numpy(result.frames) for row, result in made.items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{step:06d}.png"
    table(rows, texts).save(path)
    return path


def table(rows: dict[str, Tensor], texts: list[str], width: int = 192) -> Image.Image:
    """The middle frame of each clip (N, T, H, W, 3), a row per name."""
    height = width * 2 // 3
    sheet = Image.new("RGB", (len(texts) * (width + 4), len(rows) * (height + 16)), "white")
    pen = ImageDraw.Draw(sheet)
    for j, (name, videos) in enumerate(rows.items()):
        pen.text((2, j * (height + 16) + 2), name, fill="black")
        for i, video in enumerate(videos):
            frame = (video[len(video) // 2] * 255).round().byte().numpy()
            image = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(image, (i * (width + 4), j * (height + 16) + 14))
    return sheet
