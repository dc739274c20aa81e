"""Train the attribute oracle (`s2flow.scorers.oracle`) on intact and broken renders.

    python -m s2flow.training oracle micro --clips 80000
    python -m s2flow.training oracle micro --resume --clips 20000 --rate 0.001 --seed 1 --failures FILE

New scenes of the training captions at LR and HR, 38 % of them with no object or with several, all with
the faults of generated clips (`damage.py`). In two batches of five the objects are broken: below an IoU
of BROKEN with the intact object, the label of its shape is "broken"; between BROKEN and INTACT, shape
and count have no label. `--failures` adds clips of a model known to break its objects, a torch file of
{"videos": uint8 (N, T, 3, h, w) at the reading size, "captions": list}. The loss is the sum of the
heads' cross-entropies; scenes without object have labels of background, camera and count only. Accuracy
is measured on held-out captions, clean, damaged and broken, and written to `scorers/weights/`.
"""

import argparse
import itertools
import json
import random
import time
from dataclasses import replace

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

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

BATCH = 64
MEASURED_CLIPS = 1024  # clips per accuracy value of the card
SHARE_OF_COUNTS = (0.08, 0.62, 0.15, 0.15)
BROKEN, INTACT = 0.75, 0.88  # intersection over union with the intact object


def draw_scene(scene: toy.Scene, count: int, rng: random.Random) -> toy.Scene:
    """The scene of a caption, placed, with `count` objects (3 means 3 or 4)."""
    if count == 0:
        return replace(toy.place(scene, rng), objects=())
    return toy.place(scene, rng, copies=rng.choice((3, 4)) if count == 3 else count)


def single(world: toy.World, held_out: bool) -> list[toy.Scene]:
    """Scenes of the captions of one object that are for training, or held out."""
    texts = toy.all_captions_cached(world)
    return [s for t, s in texts.items() if s.number == 1 and toy.held_out(t) == held_out]


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
    for name in labels.keys() - {"background"}:
        labels[name][:] = -100
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
    rng, steps = random.Random(seed), clips // BATCH
    training_scenes = single(oracle.size.world, held_out=False)
    oracle = oracle.to(device).train().requires_grad_(True)
    optimiser = torch.optim.AdamW(oracle.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1)
    average = torch.optim.swa_utils.AveragedModel(
        oracle, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=True
    )
    start = time.time()
    for step in range(1, steps + 1):
        with torch.no_grad():
            frames, labels = batch(oracle, training_scenes, step, failures, rng)
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
            hits = {k: (logits[k].argmax(-1) == v)[v >= 0] for k, v in labels.items()}
            line = " ".join(f"{k} {v.float().mean():.2f}" for k, v in hits.items())
            print(f"{step}/{steps} {time.time() - start:.0f} s  {line}", flush=True)
    return average.module.eval()


def batch(
    oracle: Oracle, pool: list[toy.Scene], step: int, failures: dict | None, rng: random.Random
) -> tuple[Tensor, dict[str, Tensor]]:
    """Frames at the reading size, not yet damaged, and their targets."""
    size, counts = oracle.size, rng.choices(COUNTS, SHARE_OF_COUNTS, k=BATCH)
    scale = 2 if rng.random() < 0.1 else 1  # ten times the cost of an LR batch
    if step % 5 in (1, 3):
        scenes = [draw_scene(rng.choice(pool), 1, rng) for _ in counts]
        return broken_batch(oracle, scenes, size.height * scale, rng)
    with_failures = step % 5 == 2 and failures is not None
    if with_failures:
        counts, scale = counts[:48], 1
    scenes = [draw_scene(rng.choice(pool), count, rng) for count in counts]
    frames = read(render(scenes, size.height * scale, size.width * scale, size.frames), size)
    labels = targets(scenes, size.world)
    if with_failures:
        failed, failed_labels = failures_batch(oracle, failures, 16, rng)
        frames = torch.cat([frames, failed])
        labels = {k: torch.cat([v, failed_labels[k]]) for k, v in labels.items()}
    return frames, labels


@torch.no_grad()
def accuracy(
    oracle: Oracle, scale: int, clips: int = MEASURED_CLIPS, damaged: bool = False, seed: int = 1
) -> dict[str, float]:
    """Accuracy per head on new renders of held-out captions at `scale` x LR size.

    Attributes are measured on clips with one object, count on equally many clips of each count.
    """
    size, device = oracle.size, next(oracle.parameters()).device
    rng, generator = random.Random(seed), torch.Generator(device).manual_seed(seed)
    scenes_of_captions = single(size.world, held_out=True)
    correct: dict[str, list[float]] = {name: [] for name in classes(size.world)}
    for names, counts in ((attributes(size.world), (1,)), (("count",), COUNTS)):
        for first in range(0, clips, 32):
            drawn = itertools.islice(itertools.cycle(counts), min(32, clips - first))
            scenes = [draw_scene(rng.choice(scenes_of_captions), n, rng) for n in drawn]
            shape = (size.height * scale, size.width * scale, size.frames)
            frames = read(render(scenes, *shape, device), size)
            logits = oracle(damage(frames, generator) if damaged else frames)
            labels = targets(scenes, size.world)
            for name in names:
                correct[name] += (logits[name].argmax(-1).cpu() == labels[name]).float().tolist()
    return {name: sum(hits) / len(hits) for name, hits in correct.items()}


@torch.no_grad()
def broken_accuracy(
    oracle: Oracle, scale: int, clips: int = MEASURED_CLIPS, seed: int = 1
) -> dict[str, float]:
    """On damaged held-out renders: recall of broken and of intact objects."""
    size, rng, generator = oracle.size, random.Random(seed), torch.Generator().manual_seed(seed)
    scenes_of_captions = single(size.world, held_out=True)
    predicted, truth = [], []
    index = classes(size.world)["shape"].index("broken")
    for _ in range(0, clips, 32):
        scenes = [draw_scene(rng.choice(scenes_of_captions), 1, rng) for _ in range(32)]
        frames, labels = broken_batch(oracle, scenes, size.height * scale, rng)
        predicted.append(oracle(damage(frames, generator))["shape"].argmax(-1) == index)
        truth.append(labels["shape"])
    predicted, truth = torch.cat(predicted).float(), torch.cat(truth)
    return {
        "broken called broken": predicted[truth == index].mean().item(),
        "intact called intact": (1 - predicted[(truth >= 0) & (truth != index)]).mean().item(),
    }


def save_half(network: nn.Module, name: str) -> None:
    """Weights in half precision, into `scorers/weights/`."""
    state = network.state_dict().items()
    state = {k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in state}
    save_file(state, WEIGHTS / f"{name}.safetensors")


def main(args: argparse.Namespace) -> None:
    """Train, save, measure, and write the card."""
    start = time.time()
    size, path = SIZES[args.size], WEIGHTS / f"{args.size}.json"
    earlier_runs = json.loads(path.read_text())["training"] if args.resume else []
    trained = load(args.size) if args.resume else Oracle(size)
    failures = torch.load(args.failures, weights_only=True) if args.failures else None
    torch.manual_seed(args.seed)
    save_half(train(trained, args.clips, args.rate, args.device, args.seed, failures), args.size)
    run = {"command": args.command, "clips": args.clips, "seconds": round(time.time() - start)}
    oracle, by_resolution = load(args.size), {}  # as it ships
    for scale, kind in itertools.product((1, 2), ("clean", "damaged")):
        accuracies = accuracy(oracle, scale, damaged=kind == "damaged")
        if kind == "damaged":
            accuracies |= broken_accuracy(oracle, scale)
        resolution = f"{size.height * scale}x{size.width * scale} {kind}"
        by_resolution[resolution] = {k: round(v, 4) for k, v in accuracies.items()}
    card = {
        "world": args.size,
        "reads": f"{size.frames} frames of {size.height}x{size.width}",
        "parameters": sum(p.numel() for p in oracle.parameters()),
        "training": [*earlier_runs, run | {"device": args.device, "torch": torch.__version__}],
        "measured_on": f"{MEASURED_CLIPS} fresh renders of held-out captions per cell",
        "accuracy": by_resolution,
    }
    path.write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))
