"""The attribute oracle: a small classifier that reads what a clip of the toy world shows.

Rendered clips come with their attributes for free, so a network can be taught to read them back:

    p(shape), p(colour), p(texture), p(motion), p(background), p(camera), p(count)  =  oracle(clip)

A clip of any resolution and length is brought to the reading size of its world (area-like resize,
evenly spaced frames); three 2-D convolutions see each frame, one 3-D convolution and one temporal
convolution see movement, and one linear head per attribute answers. `count` is 0, 1, 2 or "3 and more";
`shape` may also be "broken": most of the object is not where one whole shape would be. How the oracle
was taught is in `s2flow.training.oracle`, how far it errs in `weights/<size>.json`.

Where it fails: it must name one answer per attribute; it knows nothing outside of its world; of
several different objects it may describe any; it reads an HR clip at LR's size, where a ragged outline
does not show (`mask.py` sees that); frames are stretched to 3:2, so other aspect ratios distort shapes.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from s2flow.embedded import world as toy
from s2flow.errors import UserError

WEIGHTS = Path(__file__).parent / "weights"
COUNTS = (0, 1, 2, 3)  # the last one stands for "3 and more"
OF_OBJECT = ("shape", "colour", "texture", "motion")


@dataclass(frozen=True)
class Size:
    """A world with the size at which the oracle reads it, which is also its LR size."""

    world: toy.World
    height: int
    width: int
    frames: int


SIZES = {
    "micro": Size(toy.MICRO, 32, 48, 8),
    "small": Size(toy.SMALL, 32, 48, 8),
    "tiny": Size(toy.TINY, 64, 96, 8),
}


def classes(world: toy.World) -> dict[str, tuple]:
    """The answers that each head chooses from; what has one answer only has no head."""
    every = {
        "shape": (*world.shapes, "broken"),
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
        x = self.frame((4 * frames.flatten(0, 1) - 2).contiguous())
        x = self.join(x.unflatten(0, frames.shape[:2]).transpose(1, 2))
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
    target = (size.height, size.width)
    if frames.shape[-2:] == target:
        return frames
    flat = F.interpolate(frames.flatten(0, 1), target, mode="bilinear", antialias=True)
    return flat.unflatten(0, frames.shape[:2]).clamp(0, 1)


def weights_hash(*names: str) -> str:
    """Short hash of shipped weights, by name: scores by other weights are other scores."""
    data = b"".join((WEIGHTS / f"{name}.safetensors").read_bytes() for name in names)
    return hashlib.sha256(data).hexdigest()[:12]


def load(name: str = "micro") -> Oracle:
    """The shipped oracle of a world, ready to read; UserError if it was never trained."""
    if name not in SIZES:
        raise UserError(f"no world of size {name!r}: choose one of {', '.join(SIZES)}")
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        what = f"type `python -m s2flow.training oracle {name}`"
        raise UserError(f"no oracle was trained for size {name!r}: {what}")
    oracle = Oracle(SIZES[name])
    oracle.load_state_dict(load_file(path))
    return oracle.eval().requires_grad_(False)


@torch.no_grad()
def features(oracle: Oracle, videos: Iterable[Tensor]) -> Tensor:
    """The oracle's features (N, 128) of clips (T, H, W, 3) in [0, 1]."""
    return torch.cat([oracle.features(read(v[None].float(), oracle.size)) for v in videos])


@torch.no_grad()
def answers(oracle: Oracle, videos: Tensor) -> list[dict[str, str | int]]:
    """The likeliest answer of every head for each clip of (B, T, H, W, 3)."""
    named = classes(oracle.size.world)
    logits = oracle(read(videos, oracle.size)).items()
    picks = [[named[name][k] for k in scores.argmax(-1)] for name, scores in logits]
    return [dict(zip(named, pick, strict=True)) for pick in zip(*picks, strict=True)]
