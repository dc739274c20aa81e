"""Train the attribute oracle (`s2flow.scorers.oracle`) on intact and broken renders.

    python -m s2flow.training oracle micro --clips 80000
    python -m s2flow.training oracle micro --resume --clips 20000 --rate 0.001 --seed 1 --failures FILE

New scenes of the training captions at LR and HR, 38 % of them with no object or with several, all with
the faults of generated clips (`damage.py`). In two batches of five the objects are broken: below an IoU
of BROKEN with the intact object, the label of its shape is "broken"; between BROKEN and INTACT, shape
and count have no label. `--failures` adds clips of a model known to break its objects, a torch file of
{"videos": uint8 (N, T, 3, h, w) at the reading size, "captions": list}. The loss is the sum of the
heads' cross-entropies, label smoothing 0.02; scenes without object have labels of background, camera
and count only. Accuracy is measured on held-out captions, clean, damaged and broken, at LR and HR, and
written to `scorers/weights/<size>.json`.
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

MEASURED_CLIPS = 1024  # clips per accuracy value of the card
SHARE_OF_COUNTS = (0.08, 0.62, 0.15, 0.15)
BROKEN, INTACT = 0.75, 0.88  # intersection over union with the intact object


def draw_scene(scene: toy.Scene, count: int, rng: random.Random) -> toy.Scene:
    """The scene of a caption, placed, with `count` objects (3 means 3 or 4)."""
    if count == 0:
        return replace(toy.place(scene, rng), objects=())
    return toy.place(scene, rng, copies=rng.choice((3, 4)) if count == 3 else count)


def targets(scenes: list[toy.Scene], world: toy.World) -> dict[str, Tensor]:
    """Class index per head and scene; -100 (ignored) for object heads of scenes without object."""
    labels = {name: [] for name in classes(world)}
    index = {name: {c: i for i, c in enumerate(of)} for name, of in classes(world).items()}
    for scene in scenes:
        for name in labels:
            if name in OF_OBJECT:
                value = getattr(scene.objects[0], name) if scene.objects else None
            else:
                value = min(len(scene.objects), 3) if name == "count" else getattr(scene, name)
            labels[name].append(index[name].get(value, -100))
    return {name: torch.tensor(values) for name, values in labels.items()}


def broken_batch(oracle: Oracle, scenes: list[toy.Scene], height: int, rng: random.Random):
    """Frames at the reading size of scenes with broken objects, and their targets."""
    size = oracle.size
    width = height * size.width // size.height
    frames, _, iou = broken(scenes, height, width, size.frames, rng)
    labels = targets(scenes, size.world)
    shapes = classes(size.world)["shape"]
    labels["shape"][iou < INTACT] = -100
    labels["shape"][iou < BROKEN] = shapes.index("broken")
    labels["count"][iou < INTACT] = -100
    for name in ("texture", "motion"):
        labels[name][iou < BROKEN] = -100
    return read(frames.movedim(2, -1), size), labels


def failures_batch(oracle: Oracle, failures: dict, count: int, rng: random.Random):
    """Clips of a model that breaks its objects, and their targets: background and a broken shape."""
    rows = rng.sample(range(len(failures["captions"])), count)
    scenes = toy.all_captions_cached(oracle.size.world)
    labels = targets([scenes[failures["captions"][i]] for i in rows], oracle.size.world)
    for name in labels:
        labels[name][:] = -100 if name != "background" else labels[name]
    labels["shape"][:] = classes(oracle.size.world)["shape"].index("broken")
    return failures["videos"][rows].float() / 255, labels


def train(
    oracle: Oracle,
    clips: int,
    rate: float = 3e-3,
    device: str = "cpu",
    seed: int = 0,
    failures: dict | None = None,
) -> Oracle:
    """Train on `clips` new renders: AdamW, one-cycle schedule, exponential moving average."""
    size, batch = oracle.size, 64
    rng = random.Random(seed)
    texts = toy.all_captions_cached(size.world)
    training_scenes = [s for text, s in texts.items() if s.number == 1 and not toy.held_out(text)]
    oracle = oracle.to(device).train().requires_grad_(True)
    steps = clips // batch
    optimiser = torch.optim.AdamW(oracle.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1)
    average = torch.optim.swa_utils.AveragedModel(
        oracle, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=True
    )
    start = time.time()
    for step in range(1, steps + 1):
        counts = rng.choices(COUNTS, SHARE_OF_COUNTS, k=batch)
        scale = 2 if rng.random() < 0.1 else 1  # ten times the cost of an LR batch
        with torch.no_grad():
            if step % 5 in (1, 3):
                scenes = [draw_scene(rng.choice(training_scenes), 1, rng) for _ in counts]
                frames, labels = broken_batch(oracle, scenes, size.height * scale, rng)
            elif step % 5 == 2 and failures is not None:
                scenes = [
                    draw_scene(rng.choice(training_scenes), count, rng) for count in counts[:48]
                ]
                frames = read(render(scenes, size.height, size.width, size.frames), size)
                labels = targets(scenes, size.world)
                failed, failed_labels = failures_batch(oracle, failures, 16, rng)
                frames = torch.cat([frames, failed])
                labels = {k: torch.cat([v, failed_labels[k]]) for k, v in labels.items()}
            else:
                scenes = [draw_scene(rng.choice(training_scenes), count, rng) for count in counts]
                shape = (size.height * scale, size.width * scale, size.frames)
                frames, labels = read(render(scenes, *shape), size), targets(scenes, size.world)
            frames = damage(frames.to(device))
        labels = {k: v.to(device) for k, v in labels.items()}
        logits = oracle(frames)
        losses = [
            F.cross_entropy(logits[k], v, label_smoothing=0.02)
            for k, v in labels.items()
            if (v >= 0).any()
        ]
        optimiser.zero_grad()
        sum(losses).backward()
        optimiser.step()
        schedule.step()
        average.update_parameters(oracle)
        if step % 50 == 0 or step == steps:
            accuracies = {k: _batch_accuracy(logits[k], labels[k]) for k in labels}
            line = " ".join(f"{k} {v:.2f}" for k, v in accuracies.items())
            print(f"{step}/{steps} {time.time() - start:.0f} s  {line}", flush=True)
    return average.module.eval()


def _batch_accuracy(logits: Tensor, labels: Tensor) -> float:
    labelled = labels >= 0
    return (logits.argmax(-1) == labels)[labelled].float().mean().item()


@torch.no_grad()
def accuracy(
    oracle: Oracle, scale: int, clips: int = 512, damaged: bool = False, seed: int = 1
) -> dict[str, float]:
    """Accuracy per head on new renders of held-out captions at `scale` x LR size.

    Attributes are measured on clips with one object, count on equally many clips of each count.
    """
    size = oracle.size
    device = next(oracle.parameters()).device
    rng = random.Random(seed)
    generator = torch.Generator(device).manual_seed(seed)
    texts = toy.all_captions_cached(size.world)
    held_out_scenes = [s for text, s in texts.items() if s.number == 1 and toy.held_out(text)]
    correct: dict[str, list[float]] = {name: [] for name in classes(size.world)}
    for kind in ("attributes", "count"):
        for first in range(0, clips, 32):
            counts = [1 if kind == "attributes" else COUNTS[k % 4] for k in range(32)]
            counts = counts[: clips - first]
            scenes = [draw_scene(rng.choice(held_out_scenes), count, rng) for count in counts]
            shape = (size.height * scale, size.width * scale, size.frames)
            frames = read(render(scenes, *shape, device), size)
            logits = oracle(damage(frames, generator) if damaged else frames)
            labels = targets(scenes, size.world)
            for name in attributes(size.world) if kind == "attributes" else ("count",):
                hits = logits[name].argmax(-1).cpu() == labels[name]
                correct[name] += hits.float().tolist()
    return {name: sum(hits) / len(hits) for name, hits in correct.items()}


@torch.no_grad()
def broken_accuracy(
    oracle: Oracle, scale: int, clips: int = 512, seed: int = 1
) -> dict[str, float]:
    """On damaged held-out renders: recall of broken and of intact objects."""
    size, rng = oracle.size, random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    texts = toy.all_captions_cached(size.world)
    held_out_scenes = [s for text, s in texts.items() if s.number == 1 and toy.held_out(text)]
    predicted, truth = [], []
    broken_class = classes(size.world)["shape"].index("broken")
    for _ in range(0, clips, 32):
        scenes = [draw_scene(rng.choice(held_out_scenes), 1, rng) for _ in range(32)]
        frames, labels = broken_batch(oracle, scenes, size.height * scale, rng)
        predicted.append(oracle(damage(frames, generator))["shape"].argmax(-1) == broken_class)
        truth.append(labels["shape"])
    predicted, truth = torch.cat(predicted), torch.cat(truth)
    return {
        "broken called broken": predicted[truth == broken_class].float().mean().item(),
        "intact called intact": (~predicted[(truth >= 0) & (truth != broken_class)])
        .float()
        .mean()
        .item(),
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


def measure(name: str, clips: int = MEASURED_CLIPS) -> dict[str, dict[str, float]]:
    """Accuracy of the shipped weights at LR and HR, clean and damaged."""
    oracle, size = load(name), SIZES[name]
    by_resolution = {}
    for scale in (1, 2):
        for damaged in (False, True):
            resolution = f"{size.height * scale}x{size.width * scale}"
            accuracies = accuracy(oracle, scale, clips, damaged)
            if damaged:
                accuracies |= broken_accuracy(oracle, scale, clips)
            rounded = {k: round(v, 4) for k, v in accuracies.items()}
            by_resolution[f"{resolution} {'damaged' if damaged else 'clean'}"] = rounded
    return by_resolution


def main(args: argparse.Namespace) -> None:
    """Train, save, measure, and write the card."""
    start = time.time()
    size, path = SIZES[args.size], WEIGHTS / f"{args.size}.json"
    earlier_runs = json.loads(path.read_text())["training"] if args.resume else []
    trained = load(args.size) if args.resume else Oracle(size)
    failures = torch.load(args.failures, weights_only=True) if args.failures else None
    torch.manual_seed(args.seed)
    oracle = train(trained, args.clips, args.rate, args.device, args.seed, failures).cpu()
    run = {"command": args.command, "clips": args.clips, "seconds": round(time.time() - start)}
    card = {
        "world": args.size,
        "reads": f"{size.frames} frames of {size.height}x{size.width}",
        "parameters": sum(p.numel() for p in oracle.parameters()),
        "training": [*earlier_runs, run | {"device": args.device, "torch": torch.__version__}],
    }
    save(oracle, args.size, card)
    card["measured_on"] = f"{MEASURED_CLIPS} fresh renders of held-out captions per cell"
    card["accuracy"] = measure(args.size)
    save(oracle, args.size, card)
    print(json.dumps(card, indent=2))
