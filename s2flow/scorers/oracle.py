"""The attribute oracle: a small classifier that reads what a clip of the toy world shows.

Rendered clips come with their attributes for free, so a network can be taught to read them back:

    p(shape), p(colour), p(texture), p(motion), p(background), p(camera), p(count)  =  oracle(clip)

A clip of any resolution and length is brought to the reading size of its world (area-like resize,
evenly spaced frames); three 2-D convolutions see each frame, one 3-D convolution and one temporal
convolution see movement, and one linear head per attribute answers. Positions are kept up to the
heads, because motion is a change of position and count is a number of places. `count` is 0, 1, 2
or "3 and more"; a world whose camera never moves (micro) has no camera head.

Training draws fresh scenes of the training captions at LR and HR, 38 % of them with no object or
with several, and damages them the way generated clips are damaged: wobbly outlines, softness,
faded or shifted colour, quantised 8 x 8 DCT blocks, white and blotchy noise. The loss is the sum
of the heads' cross-entropies, label smoothing 0.02; a scene with no object teaches only background,
camera and count. Accuracy is measured on captions that training never saw, clean and damaged, at LR and
HR, and stands in `weights/<size>.json`.

Commands (9 and 5 minutes of an idle CPU core; the card lists every call that made the weights):

    python -m s2flow.scorers.oracle micro
    python -m s2flow.scorers.oracle micro --resume --clips 30000 --rate 0.002 --seed 1

Where it fails: it must name one answer per attribute, so a shapeless blob still gets a shape; it
knows nothing outside of its world; of several different objects it may
describe any; frames are stretched to 3:2, so other aspect ratios distort shapes.
"""

import argparse
import hashlib
import json
import math
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from s2flow.backbones.tiny import world as toy
from s2flow.backbones.tiny.render import render
from s2flow.errors import UserError

WEIGHTS = Path(__file__).parent / "weights"
MEASURED = 1024  # clips per figure of the card
COUNTS = (0, 1, 2, 3)  # the last one stands for "3 and more"
OF_OBJECT = ("shape", "colour", "texture", "motion")
SHARE_OF_COUNTS = (0.08, 0.62, 0.15, 0.15)


@dataclass(frozen=True)
class Size:
    """A world with the size at which the oracle reads it, which is also its LR size."""

    world: toy.World
    height: int
    width: int
    frames: int


SIZES = {"micro": Size(toy.MICRO, 32, 48, 8), "tiny": Size(toy.TINY, 64, 96, 8)}


def classes(world: toy.World) -> dict[str, tuple]:
    """The answers that each head chooses from; nobody is asked what has one answer only."""
    every = {
        "shape": world.shapes,
        "colour": world.colours,
        "texture": world.textures,
        "motion": world.motions,
        "background": world.backgrounds,
        "camera": world.cameras,
        "count": COUNTS,
    }
    return {name: answers for name, answers in every.items() if len(answers) > 1}


def attributes(world: toy.World) -> tuple[str, ...]:
    """The heads that a caption answers: all but count."""
    return tuple(name for name in classes(world) if name != "count")


# -- the network ------------------------------------------------------------------------------


class Oracle(nn.Module):
    """Frames (B, T, 3, h, w) at the reading size, in [0, 1] -> logits (B, classes) per head."""

    def __init__(self, size: Size):
        super().__init__()
        self.size = size
        deeper = [] if size.height <= 32 else [_conv(48, 48, 3, 2)]
        self.frame = nn.Sequential(
            _conv(3, 24, 5, 2), _conv(24, 48, 3, 2), *deeper, _conv(48, 64, 3, 1)
        )
        self.join = nn.Sequential(
            nn.Conv3d(64, 96, 3, stride=2, padding=1, bias=False), nn.BatchNorm3d(96), nn.SiLU()
        )
        self.time = nn.Sequential(nn.Conv3d(96, 96, (size.frames // 2, 1, 1)), nn.SiLU())
        cells = (size.height // 8) * (size.width // 8) // (4 if deeper else 1)
        self.body = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(96 * cells, 128))
        heads = {name: nn.Linear(128, len(of)) for name, of in classes(size.world).items()}
        self.heads = nn.ModuleDict(heads)

    def features(self, frames: Tensor) -> Tensor:
        """(B, 128): what the heads see, and what `world.frechet_distance` compares."""
        b, t = frames.shape[:2]
        x = self.frame((4 * frames.flatten(0, 1) - 2).contiguous())
        x = self.join(x.unflatten(0, (b, t)).transpose(1, 2))
        return F.silu(self.body(self.time(x)))

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """Logits per head."""
        features = self.features(frames)
        return {name: head(features) for name, head in self.heads.items()}


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.SiLU())


def read(videos: Tensor, size: Size) -> Tensor:
    """(B, T, H, W, 3) in [0, 1] of any size -> (B, size.frames, 3, size.height, size.width)."""
    chosen = torch.linspace(0, videos.shape[1] - 1, size.frames).round().long()
    frames = videos[:, chosen].movedim(-1, 2)
    if frames.shape[-2:] == (size.height, size.width):
        return frames
    flat = F.interpolate(
        frames.flatten(0, 1), (size.height, size.width), mode="bilinear", antialias=True
    )
    return flat.unflatten(0, frames.shape[:2]).clamp(0, 1)


def weights_hash(name: str) -> str:
    """Short hash of a world's shipped weights: scores by other weights are other scores."""
    return hashlib.sha256((WEIGHTS / f"{name}.safetensors").read_bytes()).hexdigest()[:12]


def load(name: str = "micro") -> Oracle:
    """The shipped oracle of a world, ready to read; UserError if it was never trained."""
    if name not in SIZES:
        raise UserError(f"no world of size {name!r}: choose one of {', '.join(SIZES)}")
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        raise UserError(
            f"no oracle was trained for size {name!r}: "
            f"type `python -m s2flow.scorers.oracle {name}`"
        )
    oracle = Oracle(SIZES[name])
    state = load_file(path)
    oracle.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    )
    return oracle.eval().requires_grad_(False)


@torch.no_grad()
def answers(oracle: Oracle, videos: Tensor) -> list[dict[str, str | int]]:
    """The likeliest answer of every head for each clip of (B, T, H, W, 3)."""
    logits = oracle(read(videos, oracle.size))
    named = classes(oracle.size.world)
    picks = {name: scores.argmax(-1).tolist() for name, scores in logits.items()}
    return [{name: named[name][k[i]] for name, k in picks.items()} for i in range(len(videos))]


# -- scenes to learn from ---------------------------------------------------------------------


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


def damage(frames: Tensor, draw: torch.Generator | None = None) -> Tensor:
    """Frames (B, T, 3, h, w) as an imperfect generator, autoencoder and codec would show them."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        u = torch.rand(b, *shape, generator=draw, device=frames.device)
        return low + (high - low) * u

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, device=frames.device)

    def sometimes(share: float) -> Tensor:
        return (uniform(0, 1, 1, 1, 1, 1) < share).float()

    b, t, _, h, w = frames.shape
    # Outlines wobble: a smooth displacement per clip, and a weaker one per frame.
    field = normal(b, 1, 2, 4, 6) + 0.4 * normal(b, t, 2, 4, 6)
    field = field * uniform(0, 0.04, 1, 1, 1, 1) * sometimes(0.5)
    field = F.interpolate(field.flatten(0, 1), (h, w), mode="bicubic", align_corners=False)
    here = F.affine_grid(torch.eye(2, 3, device=frames.device)[None], (1, 3, h, w), False)
    x = F.grid_sample(
        frames.flatten(0, 1),
        here + field.movedim(1, -1),
        padding_mode="border",
        align_corners=False,
    )
    # Softness of an autoencoder; a negative share sharpens.
    blurred = F.avg_pool2d(
        F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), 3, 1, 1, False, False
    )
    x, blurred = x.unflatten(0, (b, t)), blurred.unflatten(0, (b, t))
    x = x + (blurred - x) * uniform(-0.3, 1.0, 1, 1, 1, 1) * sometimes(0.7)
    # Faded and shifted colours, too little to turn one name into another.
    grey = x.mean(2, keepdim=True)
    x = x + (grey - x) * uniform(-0.1, 0.25, 1, 1, 1, 1)
    gain, offset = uniform(0.92, 1.08, 1, 3, 1, 1), uniform(-0.04, 0.04, 1, 3, 1, 1)
    x = x * gain + offset + 0.015 * normal(b, t, 1, 1, 1)
    # Blotches and white noise.
    blotches = F.interpolate(normal(b * t, 3, 4, 6), (h, w), mode="bilinear", align_corners=False)
    x = x + blotches.unflatten(0, (b, t)) * uniform(0, 0.06, 1, 1, 1, 1) * sometimes(0.5)
    x = x + normal(b, t, 3, h, w) * uniform(0, 0.05, 1, 1, 1, 1) * sometimes(0.5)
    return quantise_blocks(x, uniform(0.01, 0.15, 1, 1, 1, 1, 1)).clamp(0, 1)


def quantise_blocks(x: Tensor, step: Tensor) -> Tensor:
    """Round the orthonormal 8 x 8 DCT of (B, T, 3, h, w) to multiples of `step`, as codecs do."""
    b, t, c, h, w = x.shape
    k = torch.arange(8, device=x.device, dtype=x.dtype)
    dct = torch.cos(math.pi / 8 * (k[None] + 0.5) * k[:, None]) / 2
    dct[0] /= math.sqrt(2)
    blocks = x.reshape(b, t, c, h // 8, 8, w // 8, 8).transpose(-2, -3)
    step = step.reshape(b, 1, 1, 1, 1, 1, 1)
    rounded = (dct @ blocks @ dct.T / step).round() * step
    return (dct.T @ rounded @ dct).transpose(-2, -3).reshape(x.shape)


# -- training and measuring -------------------------------------------------------------------


def train(
    oracle: Oracle, clips: int, rate: float = 3e-3, device: str = "cpu", seed: int = 0
) -> Oracle:
    """Learn from `clips` fresh renders; AdamW, one cycle, exponential moving average."""
    size, batch = oracle.size, 64
    rng = random.Random(seed)
    texts = toy.all_captions_cached(size.world)
    known = [scene for text, scene in texts.items() if not toy.held_out(text)]
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
        scenes = [draw_scene(rng.choice(known), count, rng) for count in counts]
        scale = 2 if rng.random() < 0.1 else 1  # ten times the cost of an LR batch
        shape = (size.height * scale, size.width * scale, size.frames)
        with torch.no_grad():
            frames = damage(read(render(scenes, *shape, device), size))
        wanted = {k: v.to(device) for k, v in targets(scenes, size.world).items()}
        logits = oracle(frames)
        losses = [F.cross_entropy(logits[k], wanted[k], label_smoothing=0.02) for k in wanted]
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
    unseen = [scene for text, scene in texts.items() if toy.held_out(text)]
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
            rounded = {k: round(v, 4) for k, v in found.items()}
            out[f"{at} {'damaged' if damaged else 'clean'}"] = rounded
    return out


def main() -> None:
    """Train, save, measure, and write the card."""
    parser = argparse.ArgumentParser(description="Train the attribute oracle of a toy world.")
    parser.add_argument("size", choices=list(SIZES))
    parser.add_argument("--clips", type=int, default=50_000, help="renders to learn from")
    parser.add_argument("--resume", action="store_true", help="go on from the shipped weights")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="another one when resuming")
    args = parser.parse_args()
    start = time.time()
    size, path = SIZES[args.size], WEIGHTS / f"{args.size}.json"
    past = json.loads(path.read_text())["training"] if args.resume else []
    trained = load(args.size) if args.resume else None
    torch.manual_seed(args.seed)
    oracle = train(trained or Oracle(size), args.clips, args.rate, args.device, args.seed)
    command = f"python -m s2flow.scorers.oracle {args.size} --clips {args.clips}"
    command += f" --rate {args.rate} --seed {args.seed}" + " --resume" * args.resume
    run = {"command": command, "clips": args.clips, "seconds": round(time.time() - start)}
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


if __name__ == "__main__":
    main()
