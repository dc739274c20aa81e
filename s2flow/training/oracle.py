"""Train the attribute oracle (`s2flow.scorers.oracle`) on whole and broken renders.

    python -m s2flow.training oracle micro --clips 80000
    python -m s2flow.training oracle micro --resume --clips 20000 --rate 0.001 --seed 1 --failures FILE

Fresh scenes of the training captions at LR and HR, 38 % of them with no object or with several, all
damaged as generated clips are (`damage.py`). In two batches of five the objects are broken: where less
than BROKEN of an object is left in its place (IoU), its shape is "broken", and nothing is asked about
what lies between that and INTACT. `--failures` adds clips of a model known to break its objects, a
torch file of {"videos": uint8 (N, T, 3, h, w) at the reading size, "captions": list}. The loss is the
sum of the heads' cross-entropies, label smoothing 0.02; a scene with no object teaches only background,
camera and count. Accuracy is measured on captions that training never saw, clean, damaged and
broken, at LR and HR, and stands in `scorers/weights/<size>.json`.
"""

import argparse
import json
import random
import time
from dataclasses import replace

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from s2flow.embedded import world as toy
from s2flow.embedded.render import render
from s2flow.scorers.oracle import (
    COUNTS,
    OF_OBJECT,
    SIZES,
    WEIGHTS,
    Oracle,
    attributes,
    classes,
    load,
    read,
)
from s2flow.training.damage import broken, damage

MEASURED = 1024  # clips per figure of the card
SHARE_OF_COUNTS = (0.08, 0.62, 0.15, 0.15)
BROKEN, INTACT = 0.75, 0.88  # of the intersection over union with the whole object


def draw_scene(scene: toy.Scene, count: int, rng: random.Random) -> toy.Scene:
    """The scene of a caption, placed, with `count` objects (3 stands for 3 or 4)."""
    if count == 0:
        return replace(toy.place(scene, rng), objects=())
    return toy.place(scene, rng, copies=rng.choice((3, 4)) if count == 3 else count)


def targets(scenes: list[toy.Scene], world: toy.World) -> dict[str, Tensor]:
    """Class index per head and scene; -100 (ignored) for the object's heads without object."""
    out = {name: [] for name in classes(world)}
    index = {name: {c: i for i, c in enumerate(of)} for name, of in classes(world).items()}
    for scene in scenes:
        for name in out:
            if name in OF_OBJECT:
                shown = getattr(scene.objects[0], name) if scene.objects else None
            else:
                shown = min(len(scene.objects), 3) if name == "count" else getattr(scene, name)
            out[name].append(index[name].get(shown, -100))
    return {name: torch.tensor(values) for name, values in out.items()}


def broken_batch(oracle: Oracle, scenes: list[toy.Scene], height: int, rng: random.Random):
    """Frames at the reading size of scenes with broken objects, and their targets."""
    size = oracle.size
    width = height * size.width // size.height
    frames, _, iou = broken(scenes, height, width, size.frames, rng)
    wanted = targets(scenes, size.world)
    shapes = classes(size.world)["shape"]
    wanted["shape"][iou < INTACT] = -100
    wanted["shape"][iou < BROKEN] = shapes.index("broken")
    wanted["count"][iou < INTACT] = -100
    for name in ("texture", "motion"):
        wanted[name][iou < BROKEN] = -100
    return read(frames.movedim(2, -1), size), wanted


def failures_batch(oracle: Oracle, failures: dict, count: int, rng: random.Random):
    """Some clips of a model that breaks its objects, and their targets: a broken shape, no more."""
    rows = rng.sample(range(len(failures["captions"])), count)
    known = toy.all_captions_cached(oracle.size.world)
    wanted = targets([known[failures["captions"][i]] for i in rows], oracle.size.world)
    for name in wanted:
        wanted[name][:] = -100 if name != "background" else wanted[name]
    wanted["shape"][:] = classes(oracle.size.world)["shape"].index("broken")
    return failures["videos"][rows].float() / 255, wanted


def train(
    oracle: Oracle,
    clips: int,
    rate: float = 3e-3,
    device: str = "cpu",
    seed: int = 0,
    failures: dict | None = None,
) -> Oracle:
    """Learn from `clips` fresh renders; AdamW, one cycle, exponential moving average."""
    size, batch = oracle.size, 64
    rng = random.Random(seed)
    texts = toy.all_captions_cached(size.world)
    known = [s for text, s in texts.items() if s.number == 1 and not toy.held_out(text)]
    oracle = oracle.to(device).train().requires_grad_(True)
    steps = clips // batch
    optimiser = torch.optim.AdamW(oracle.parameters(), lr=rate, weight_decay=0.02)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1)
    mean = torch.optim.swa_utils.AveragedModel(
        oracle, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=True
    )
    start = time.time()
    for step in range(1, steps + 1):
        counts = rng.choices(COUNTS, SHARE_OF_COUNTS, k=batch)
        scale = 2 if rng.random() < 0.1 else 1  # ten times the cost of an LR batch
        with torch.no_grad():
            if step % 5 in (1, 3):
                scenes = [draw_scene(rng.choice(known), 1, rng) for _ in counts]
                frames, wanted = broken_batch(oracle, scenes, size.height * scale, rng)
            elif step % 5 == 2 and failures is not None:
                scenes = [draw_scene(rng.choice(known), count, rng) for count in counts[:48]]
                frames = read(render(scenes, size.height, size.width, size.frames), size)
                wanted = targets(scenes, size.world)
                more, theirs = failures_batch(oracle, failures, 16, rng)
                frames = torch.cat([frames, more])
                wanted = {k: torch.cat([v, theirs[k]]) for k, v in wanted.items()}
            else:
                scenes = [draw_scene(rng.choice(known), count, rng) for count in counts]
                shape = (size.height * scale, size.width * scale, size.frames)
                frames, wanted = read(render(scenes, *shape), size), targets(scenes, size.world)
            frames = damage(frames.to(device))
        wanted = {k: v.to(device) for k, v in wanted.items()}
        logits = oracle(frames)
        losses = [
            F.cross_entropy(logits[k], v, label_smoothing=0.02)
            for k, v in wanted.items()
            if (v >= 0).any()
        ]
        optimiser.zero_grad()
        sum(losses).backward()
        optimiser.step()
        cycle.step()
        mean.update_parameters(oracle)
        if step % 50 == 0 or step == steps:
            right = {k: _share_right(logits[k], wanted[k]) for k in wanted}
            line = " ".join(f"{k} {v:.2f}" for k, v in right.items())
            print(f"{step}/{steps} {time.time() - start:.0f} s  {line}", flush=True)
    return mean.module.eval()


def _share_right(logits: Tensor, wanted: Tensor) -> float:
    asked = wanted >= 0
    return (logits.argmax(-1) == wanted)[asked].float().mean().item()


@torch.no_grad()
def accuracy(
    oracle: Oracle, scale: int, clips: int = 512, damaged: bool = False, seed: int = 1
) -> dict[str, float]:
    """Share of right answers per head on fresh renders of held-out captions at `scale` x LR size.

    Attributes are asked of clips with one object; count of as many clips of each count.
    """
    size = oracle.size
    device = next(oracle.parameters()).device
    rng = random.Random(seed)
    draw = torch.Generator(device).manual_seed(seed)
    texts = toy.all_captions_cached(size.world)
    unseen = [s for text, s in texts.items() if s.number == 1 and toy.held_out(text)]
    right: dict[str, list[float]] = {name: [] for name in classes(size.world)}
    for kind in ("attributes", "count"):
        for first in range(0, clips, 32):
            counts = [1 if kind == "attributes" else COUNTS[k % 4] for k in range(32)]
            counts = counts[: clips - first]
            scenes = [draw_scene(rng.choice(unseen), count, rng) for count in counts]
            shape = (size.height * scale, size.width * scale, size.frames)
            frames = read(render(scenes, *shape, device), size)
            logits = oracle(damage(frames, draw) if damaged else frames)
            wanted = targets(scenes, size.world)
            for name in attributes(size.world) if kind == "attributes" else ("count",):
                hits = logits[name].argmax(-1).cpu() == wanted[name]
                right[name] += hits.float().tolist()
    return {name: sum(hits) / len(hits) for name, hits in right.items()}


@torch.no_grad()
def broken_accuracy(
    oracle: Oracle, scale: int, clips: int = 512, seed: int = 1
) -> dict[str, float]:
    """Of damaged held-out renders: share of broken objects called so, and of intact ones not."""
    size, rng = oracle.size, random.Random(seed)
    draw = torch.Generator().manual_seed(seed)
    texts = toy.all_captions_cached(size.world)
    unseen = [s for text, s in texts.items() if s.number == 1 and toy.held_out(text)]
    called, truth = [], []
    name = classes(size.world)["shape"].index("broken")
    for _ in range(0, clips, 32):
        scenes = [draw_scene(rng.choice(unseen), 1, rng) for _ in range(32)]
        frames, wanted = broken_batch(oracle, scenes, size.height * scale, rng)
        called.append(oracle(damage(frames, draw))["shape"].argmax(-1) == name)
        truth.append(wanted["shape"])
    called, truth = torch.cat(called), torch.cat(truth)
    return {
        "broken called broken": called[truth == name].float().mean().item(),
        "intact called intact": (~called[(truth >= 0) & (truth != name)]).float().mean().item(),
    }


def save(oracle: Oracle, name: str, card: dict) -> None:
    """Weights in half precision and the card beside them."""
    WEIGHTS.mkdir(exist_ok=True)
    state = {
        k: (v.half() if v.is_floating_point() else v).cpu().contiguous()
        for k, v in oracle.state_dict().items()
    }
    save_file(state, WEIGHTS / f"{name}.safetensors")
    (WEIGHTS / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")


def measure(name: str, clips: int = MEASURED) -> dict[str, dict[str, float]]:
    """Accuracy of the shipped weights at LR and HR, clean and damaged."""
    oracle, size = load(name), SIZES[name]
    out = {}
    for scale in (1, 2):
        for damaged in (False, True):
            at = f"{size.height * scale}x{size.width * scale}"
            found = accuracy(oracle, scale, clips, damaged)
            if damaged:
                found |= broken_accuracy(oracle, scale, clips)
            rounded = {k: round(v, 4) for k, v in found.items()}
            out[f"{at} {'damaged' if damaged else 'clean'}"] = rounded
    return out


def main(args: argparse.Namespace) -> None:
    """Train, save, measure, and write the card."""
    start = time.time()
    size, path = SIZES[args.size], WEIGHTS / f"{args.size}.json"
    past = json.loads(path.read_text())["training"] if args.resume else []
    trained = load(args.size) if args.resume else Oracle(size)
    failures = torch.load(args.failures, weights_only=True) if args.failures else None
    torch.manual_seed(args.seed)
    oracle = train(trained, args.clips, args.rate, args.device, args.seed, failures).cpu()
    run = {"command": args.command, "clips": args.clips, "seconds": round(time.time() - start)}
    card = {
        "world": args.size,
        "reads": f"{size.frames} frames of {size.height}x{size.width}",
        "parameters": sum(p.numel() for p in oracle.parameters()),
        "training": [*past, run | {"device": args.device, "torch": torch.__version__}],
    }
    save(oracle, args.size, card)
    card["measured_on"] = f"{MEASURED} fresh renders of held-out captions per cell"
    card["accuracy"] = measure(args.size)
    save(oracle, args.size, card)
    print(json.dumps(card, indent=2))
