"""Is the object of a clip of the toy world one whole shape? Its mask, and the shape that fits it best.

A small U-Net, taught on whole and broken renders (`s2flow.training.mask`), tells for each pixel of a
frame, read at 64x96, whether an object covers it. To this mask the shape that the caption names is
fitted, position, radius and angle free, by the largest intersection over union:

    whole  = max IoU(mask, shape)                     1 is a perfect outline
    debris = |mask outside the shape, two pixels and more from it| / |shape|

The shape is fitted to the largest connected part of the mask, pieces within four pixels counted as
connected; for a caption with n objects, n shapes are fitted one after the other. Both are means over
four frames, 0 for a frame without any mask.

Where it fails: an object of its background's colour (white on clouds, black at night) has a mask that
is less sure; the mask of a render is not perfect either (`weights/mask.json` has its error), so read
`whole` beside a render's.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from s2flow.embedded.render import DISTANCE
from s2flow.embedded.world import Scene

WEIGHTS = Path(__file__).parent / "weights"
HEIGHT, WIDTH = 64, 96
FRAMES = 4
LEAST = 0.01  # share of the frame below which nothing is there
AREA = {"ball": 2.84, "square": 2.56, "triangle": 1.75, "star": 1.36, "ring": 2.56, "cross": 2.36}


class Mask(nn.Module):
    """Frames (B, 3, 64, 96) in [0, 1] -> logits (B, 64, 96) of being covered by an object."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.one, self.two = _pair(5, width), _pair(width, 2 * width)
        self.three, self.four = _pair(2 * width, 4 * width), _pair(4 * width, 4 * width)
        self.up_three, self.up_two = _pair(8 * width, 2 * width), _pair(4 * width, width)
        self.up_one = nn.Sequential(_pair(2 * width, width), nn.Conv2d(width, 1, 1))

    def forward(self, frames: Tensor) -> Tensor:
        """See the class."""
        sides = (torch.linspace(-1, 1, n, device=frames.device) for n in frames.shape[-2:])
        place = torch.stack(torch.meshgrid(*sides, indexing="ij")).expand(len(frames), -1, -1, -1)
        a = self.one(torch.cat([4 * frames - 2, place], 1))
        b = self.two(F.max_pool2d(a, 2))
        c = self.three(F.max_pool2d(b, 2))
        d = self.four(F.max_pool2d(c, 2))
        c = self.up_three(torch.cat([F.interpolate(d, scale_factor=2.0), c], 1))
        b = self.up_two(torch.cat([F.interpolate(c, scale_factor=2.0), b], 1))
        return self.up_one(torch.cat([F.interpolate(b, scale_factor=2.0), a], 1))[:, 0]


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    layers = []
    for n in (inputs, outputs):
        conv = nn.Conv2d(n, outputs, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.SiLU()]
    return nn.Sequential(*layers)


def load_mask() -> Mask:
    """The shipped network, ready to read."""
    network = Mask()
    network.load_state_dict(load_file(WEIGHTS / "mask.safetensors"))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def measure(network: Mask, video: Tensor, scene: Scene) -> dict[str, float]:
    """{"whole", "debris"} of a clip (T, H, W, 3) in [0, 1] for the scene of its caption."""
    chosen = torch.linspace(0, len(video) - 1, min(FRAMES, len(video))).round().long()
    frames = video[chosen].movedim(-1, 1)
    if frames.shape[-2:] != (HEIGHT, WIDTH):
        large = frames.shape[-2] >= HEIGHT
        frames = F.interpolate(frames, (HEIGHT, WIDTH), mode="bilinear", antialias=large)
    masks = network(frames.clamp(0, 1)).sigmoid()
    rows = [_fit(mask, scene.objects[0].shape, scene.number) for mask in masks]
    means = (sum(values) / len(rows) for values in zip(*rows, strict=True))
    return dict(zip(("whole", "debris"), means, strict=True))


def _fit(mask: Tensor, shape: str, number: int) -> tuple[float, float]:
    """`whole` and `debris` of the best `number` shapes of a mask (64, 96) in [0, 1]."""
    if mask.mean() < LEAST:
        return 0.0, 0.0
    covered, left = torch.zeros_like(mask), mask
    for _ in range(number):
        cover = _best_shape(_largest_part(left), shape)
        covered = torch.maximum(covered, cover)
        left = left * (1 - _grown(cover))
    outside = (mask > 0.5) * (1 - _grown(covered))
    debris = (outside.sum() / covered.sum().clamp(min=1)).item()
    return _iou(covered[None], mask).item(), debris


def _largest_part(mask: Tensor) -> Tensor:
    """The mask where its largest connected part is, 0 elsewhere."""
    near = _grown(mask)
    label = near * torch.arange(1.0, near.numel() + 1).view_as(near)
    before = None
    while before is None or not torch.equal(before, label):  # a part's largest number floods it
        before, label = label, F.max_pool2d(label[None], 3, 1, 1)[0] * near
    numbers, counts = torch.unique(label[near > 0], return_counts=True)
    return mask * (label == numbers[counts.argmax()]) if len(numbers) else mask


def _best_shape(mask: Tensor, shape: str) -> Tensor:
    """Coverage (64, 96) of the shape with the highest IoU: moments first, then a random search."""
    draw = torch.Generator().manual_seed(0)
    yy, xx = _pixels()
    weight = mask / mask.sum().clamp(min=1e-6)
    cy, cx = (weight * yy).sum(), (weight * xx).sum()
    radius = (mask.sum() * (2 / HEIGHT) ** 2 / AREA[shape]).sqrt().clamp(0.1, 1.5)
    turns = shape not in ("ball", "ring")
    angles = torch.linspace(0, 2 * math.pi, 13)[:-1] if turns else torch.zeros(1)
    tries = torch.stack(torch.broadcast_tensors(cx, cy, radius, angles), 1)
    spread = torch.tensor([0.25, 0.25, 0.15, 0.3])
    for _ in range(9):
        best = tries[_iou(_cover(shape, tries), mask).argmax()]
        tries = torch.cat([best[None], best + spread * torch.randn(48, 4, generator=draw)])
        tries[:, 2].clamp_(0.1, 1.5)
        spread = spread * 0.6
    return _cover(shape, best[None])[0]


def _pixels() -> tuple[Tensor, Tensor]:
    y, x = ((torch.arange(n) + 0.5 - n / 2) * 2 / HEIGHT for n in (HEIGHT, WIDTH))
    return torch.meshgrid(y, x, indexing="ij")


def _cover(shape: str, tries: Tensor) -> Tensor:
    """Coverage (N, 64, 96) of shapes at (x, y, radius, angle), each row of (N, 4)."""
    yy, xx = _pixels()
    cx, cy, radius, angle = (column.view(-1, 1, 1) for column in tries.T)
    dx, dy, c, s = (xx - cx) / radius, (yy - cy) / radius, angle.cos(), angle.sin()
    distance = DISTANCE[shape](c * dx + s * dy, c * dy - s * dx)
    return (0.5 - distance * radius * HEIGHT / 2).clamp(0, 1)


def _iou(covers: Tensor, mask: Tensor) -> Tensor:
    both, either = torch.minimum(covers, mask), torch.maximum(covers, mask)
    return both.sum((-2, -1)) / either.sum((-2, -1)).clamp(min=1e-6)


def _grown(cover: Tensor) -> Tensor:
    """The region within two pixels of a cover."""
    return (F.max_pool2d(cover[None], 5, 1, 2)[0] > 0.5).float()
