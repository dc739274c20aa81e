"""Renders with the faults of an imperfect generator: training data of the oracle and the mask.

`damage` is photometric: wobbly outlines, softness, faded or shifted colour, dots at the period of the
tokens, quantised 8 x 8 DCT blocks, white and blotchy noise. The object stays intact.

`broken` damages the object: parts missing, bands shifted, an outline torn along the lattice of tokens,
a second outline beside the first, melted shapes, debris. With the object's premultiplied colour O, its
coverage M and the background B, a frame is O + (1 - M) B. O and M are damaged together, so that the
coverage of the remaining object is known.
"""

import math
import random
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2flow.embedded.render import coverage, render
from s2flow.embedded.world import Scene


def damage(frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Frames (B, T, 3, h, w) in [0, 1] with photometric faults; see the module."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        u = torch.rand(b, *shape, generator=generator, device=frames.device)
        return low + (high - low) * u

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=frames.device)

    def sometimes(share: float) -> Tensor:
        return (uniform(0, 1, 1, 1, 1, 1) < share).float()

    b, t, _, h, w = frames.shape
    # Outlines wobble: a smooth displacement per clip, and a weaker one per frame.
    field = normal(b, 1, 2, 4, 6) + 0.4 * normal(b, t, 2, 4, 6)
    field = field * uniform(0, 0.04, 1, 1, 1, 1) * sometimes(0.5)
    field = F.interpolate(field.flatten(0, 1), (h, w), mode="bicubic", align_corners=False)
    identity_grid = F.affine_grid(torch.eye(2, 3, device=frames.device)[None], (1, 3, h, w), False)
    grid = identity_grid + field.movedim(1, -1)
    x = F.grid_sample(frames.flatten(0, 1), grid, "bilinear", "border", align_corners=False)
    # Softness of an autoencoder; a negative share sharpens.
    blur = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    x, blurred = x.unflatten(0, (b, t)), blur(blur(x)).unflatten(0, (b, t))
    x = x + (blurred - x) * uniform(-0.3, 1.0, 1, 1, 1, 1) * sometimes(0.7)
    # Faded and shifted colours, too little to change a colour's name.
    grey = x.mean(2, keepdim=True)
    x = x + (grey - x) * uniform(-0.1, 0.25, 1, 1, 1, 1)
    gain, offset = uniform(0.92, 1.08, 1, 3, 1, 1), uniform(-0.04, 0.04, 1, 3, 1, 1)
    x = x * gain + offset + 0.015 * normal(b, t, 1, 1, 1)
    # Dots or seams with the period of the tokens.
    cell = h // (4 if uniform(0, 1, 1)[0] < 0.5 else 8)
    tile = normal(b, 1, 1, cell, cell).repeat(1, 1, 1, -(-h // cell), -(-w // cell))[..., :h, :w]
    x = x + tile * uniform(0, 0.08, 1, 1, 1, 1) * sometimes(0.3)
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


def broken(
    scenes: list[Scene],
    height: int,
    width: int,
    times: int | Tensor,
    rng: random.Random,
    whole: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Frames (B, T, 3, H, W) of scenes with broken objects, their coverage (B, T, H, W), and its
    intersection over union (B,) with that of the intact objects.

    About one scene in five is not changed; whole: none is.
    """
    shape = height, width, times
    x = render(scenes, *shape).movedim(-1, 2)
    background = render([replace(s, objects=()) for s in scenes], *shape).movedim(-1, 2)
    intact = coverage(scenes, *shape)
    layer = torch.cat([x - background * (1 - intact[:, :, None]), intact[:, :, None]], 2)  # O, M
    if not whole:
        layer = torch.stack([_break(clip, rng) for clip in layer])
    remaining = layer[:, :, 3].clamp(0, 1)
    x = layer[:, :, :3] + background * (1 - remaining[:, :, None])
    intersection, union = torch.minimum(remaining, intact), torch.maximum(remaining, intact)
    iou = (intersection.sum((1, 2, 3)) + 1e-3) / (union.sum((1, 2, 3)) + 1e-3)
    return x.clamp(0, 1), remaining, iou


def _break(layer: Tensor, rng: random.Random) -> Tensor:
    """One clip's (T, 4, H, W), premultiplied colour and coverage, broken in one or two ways."""
    if rng.random() < 0.2 or layer[:, 3].max() < 0.5:
        return layer
    faults = (_missing, _shifted, _torn, _doubled, _melted, _debris)
    for fault in rng.sample(faults, rng.choice((1, 1, 2))):
        layer = fault(layer, rng)
    return layer


def _inside(layer: Tensor, rng: random.Random) -> tuple[int, int]:
    """(row, column) of a random pixel of the object."""
    rows, columns = torch.nonzero(layer[len(layer) // 2, 3] > 0.5, as_tuple=True)
    if not len(rows):
        return rng.randrange(layer.shape[-2]), rng.randrange(layer.shape[-1])
    k = rng.randrange(len(rows))
    return int(rows[k]), int(columns[k])


def _missing(layer: Tensor, rng: random.Random) -> Tensor:
    """Blocks of the token lattice, or discs, taken out."""
    T, _, H, W = layer.shape
    keep = torch.ones(H, W)
    cell = H // rng.choice((4, 8))
    yy, xx = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    for _ in range(rng.randint(1, 4)):
        y, x = _inside(layer, rng)
        if rng.random() < 0.6:
            top, left = y // cell * cell, x // cell * cell
            keep[top : top + cell * rng.randint(1, 2), left : left + cell * rng.randint(1, 2)] = 0
        else:
            keep[(yy - y) ** 2 + (xx - x) ** 2 < (H * rng.uniform(0.05, 0.2)) ** 2] = 0
    return layer * keep


def _shifted(layer: Tensor, rng: random.Random) -> Tensor:
    """A band of rows or columns moved along itself."""
    out, axis = layer.clone(), rng.choice((2, 3))
    side = layer.shape[axis]
    start = _inside(layer, rng)[axis - 2]
    band = slice(start, min(side, start + rng.randint(side // 8, side // 2)))
    index = (*[slice(None)] * axis, band)
    shift = rng.choice((-1, 1)) * max(1, round(layer.shape[2] * rng.uniform(0.05, 0.25)))
    out[index] = out[index].roll(shift, 5 - axis)
    return out


def _torn(layer: Tensor, rng: random.Random) -> Tensor:
    """Each cell of the token lattice displaced a little."""
    H, W = layer.shape[-2:]
    cell = rng.choice((4, 8))
    field = torch.randn(1, 2, cell, cell * W // H, generator=_generator(rng))
    return _warp(layer, F.interpolate(field * rng.uniform(0.03, 0.15), (H, W)))


def _melted(layer: Tensor, rng: random.Random) -> Tensor:
    """A smooth displacement that changes the outline."""
    shift = torch.randn(1, 2, 3, 5, generator=_generator(rng)) * rng.uniform(0.05, 0.3)
    return _warp(layer, F.interpolate(shift, layer.shape[-2:], mode="bicubic", align_corners=True))


def _doubled(layer: Tensor, rng: random.Random) -> Tensor:
    """A second copy of the object behind the first, moved and scaled."""
    far, scales = (0.12, (0.8, 1.2)) if rng.random() < 0.6 else (0.9, (0.7, 1.6))
    scale, x, y = rng.uniform(*scales), rng.uniform(-far, far), rng.uniform(-far, far)
    theta = torch.tensor([[[scale, 0, x], [0, scale, y]]])
    grid = F.affine_grid(theta, (1, 1, *layer.shape[-2:]), False).expand(len(layer), -1, -1, -1)
    copy = F.grid_sample(layer, grid, align_corners=False)
    return layer + copy * (1 - layer[:, 3:])


def _debris(layer: Tensor, rng: random.Random) -> Tensor:
    """Small pieces of the object copied to random places."""
    T, _, H, W = layer.shape
    out = layer.clone()
    for _ in range(rng.randint(2, 10)):
        side = max(2, round(H * rng.uniform(0.04, 0.16)))
        y, x = _inside(layer, rng)
        piece = layer[:, :, max(0, y - side // 2) :, max(0, x - side // 2) :][:, :, :side, :side]
        h, w = piece.shape[-2:]
        top, left = rng.randint(0, H - h), rng.randint(0, W - w)
        target = out[:, :, top : top + h, left : left + w]
        target.copy_(target + piece * (1 - target[:, 3:]))
    return out


def _warp(layer: Tensor, shift: Tensor) -> Tensor:
    """The layer displaced by a field (1, 2, H, W) in half-frames."""
    identity_grid = F.affine_grid(torch.eye(2, 3)[None], (1, 1, *layer.shape[-2:]), False)
    grid = (identity_grid + shift.movedim(1, -1)).expand(len(layer), -1, -1, -1)
    return F.grid_sample(layer, grid, align_corners=False)


def _generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.getrandbits(48))
