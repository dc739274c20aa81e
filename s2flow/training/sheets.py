"""A sheet of generated clips and their renders, to inspect while a backbone trains."""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

import s2flow
from s2flow.embedded import backbone as tiny
from s2flow.embedded.render import render
from s2flow.embedded.world import WORLDS, all_captions_cached, held_out_captions, place

KNOBS = {"native": {"method": "native"}, "cascade": {"method": "cascade"}}
KNOBS |= {"s2flow s=.5": {"sparsity": 0.5}}


def draw(name: str, weights: Path, folder: Path, step: int) -> None:
    """Write folder/STEP.png, middle frames: rows truth, LR and of KNOBS, a column per prompt."""
    backbone, world = tiny.load(name, "cpu", weights), WORLDS[name]
    captions = held_out_captions(world, 6, seed=1)
    results = {row: s2flow.generate(backbone, captions, **knobs) for row, knobs in KNOBS.items()}
    frames, height, width = results["cascade"].frames.shape[1:4]
    scenes = [place(all_captions_cached(world)[t], random.Random(0)) for t in captions]
    rows = {"truth": render(scenes, height, width, frames)}
    rows["LR"] = torch.from_numpy(results["cascade"].low_frames)
    rows |= {row: torch.from_numpy(result.frames) for row, result in results.items()}
    lines = []
    for videos in rows.values():
        images = videos[:, videos.shape[1] // 2].movedim(-1, 1)
        lines.append(torch.cat([*F.interpolate(images, (128, 192))], -1))
    pixels = (torch.cat(lines, 1).movedim(0, -1) * 255).round().byte().numpy()
    sheet = Image.fromarray(pixels)
    for i, row in enumerate(rows):
        ImageDraw.Draw(sheet).text((2, 128 * i + 2), row, fill="white")
    folder.mkdir(parents=True, exist_ok=True)
    sheet.save(folder / f"{step:06d}.png")
