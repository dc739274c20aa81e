"""Train the network that segments the pixels of objects (`s2flow.scorers.mask`).

    python -m s2flow.training mask --clips 40000

Frames of intact and broken renders (`damage.py`) of all captions but the held-out ones, with one object
or several, rendered at 64x96 or at half of it and enlarged. The loss is cross-entropy per pixel. The
card holds the IoU of masks with the truth on held-out renders, intact and broken.
"""

import argparse
import json
import random
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from s2flow.embedded import world as toy
from s2flow.scorers.mask import HEIGHT, WEIGHTS, WIDTH, Mask, load_mask
from s2flow.training.damage import broken, damage
from s2flow.training.oracle import save_half

BATCH = 32


def draw(rng: random.Random, split: str = "train", whole: bool = False) -> tuple[Tensor, Tensor]:
    """(B, 3, 64, 96) frames of broken or whole objects, and their coverage (B, 64, 96)."""
    scenes = toy.sample_scenes(toy.SMALL, BATCH, rng.getrandbits(48), split)
    scenes = [s for s in scenes if s.number == 1 or rng.random() < 0.5]
    scale = rng.choice((1, 1, 2))
    times = torch.tensor([rng.random()])
    if whole:
        rng = random.Random(rng.getrandbits(48))
    x, covered, _ = broken(scenes, HEIGHT // scale, WIDTH // scale, times, rng, whole)
    x = damage(x, torch.Generator().manual_seed(rng.getrandbits(48)))[:, 0]
    if scale == 2:
        x = F.interpolate(x, (HEIGHT, WIDTH), mode="bilinear")
        covered = F.interpolate(covered, (HEIGHT, WIDTH), mode="bilinear")
    return x, covered[:, 0]


def train(args: argparse.Namespace) -> None:
    """Train, measure, write weights and card."""
    torch.manual_seed(0)
    network, rng = Mask(), random.Random(0)
    steps = args.clips // BATCH
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps, pct_start=0.1)
    start = time.time()
    for step in range(1, steps + 1):
        with torch.no_grad():
            x, covered = draw(rng)
        loss = F.binary_cross_entropy_with_logits(network(x), covered)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            seconds = time.time() - start
            print(f"{step}/{steps} {seconds:.0f} s  loss {loss.item():.4f}", flush=True)
    save_half(network, "mask")
    network, errors = load_mask(), {}
    for name in ("whole", "broken"):
        rng, ious = random.Random(1), []
        for _ in range(16):
            x, covered = draw(rng, "held_out", name == "whole")
            mask = network(x).sigmoid()
            union = torch.maximum(mask, covered).sum((1, 2)).clamp(min=1)
            ious += (torch.minimum(mask, covered).sum((1, 2)) / union).tolist()
        errors[name] = {"mean_iou": round(sum(ious) / len(ious), 4), "frames": len(ious)}
    card = {
        "reads": f"frames of {HEIGHT}x{WIDTH}",
        "parameters": sum(p.numel() for p in network.parameters()),
        "command": args.command,
        "seconds": round(time.time() - start),
        "torch": torch.__version__,
        "iou_with_truth_on_damaged_held_out_renders": errors,
    }
    (WEIGHTS / "mask.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))
