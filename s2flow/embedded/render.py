"""Pixels of the toy world, drawn from signed distances.

Everything is analytic in frame-relative coordinates

    y in [-1, 1] downward,  x in [-W/H, W/H] rightward,  t in [0, 1],

so the same scene exists at every resolution, anti-aliased, and every prompt has a ground truth at
high resolution. Edges are softened over one pixel: coverage = clamp(1/2 - distance / pixel, 0, 1).
"""

import math

import torch
from torch import Tensor

from s2flow.embedded.world import COLOURS, Object, Scene


def render(
    scenes: list[Scene],
    height: int,
    width: int,
    frames: int | Tensor,
    device: str | torch.device = "cpu",
    pixel: float | None = None,
) -> Tensor:
    """Draw scenes: (B, frames, height, width, 3), float32 in [0, 1].

    frames: their number, evenly spaced in time, or their times in [0, 1].
    pixel: side of a pixel in the world's units, 2 / height unless another view is wanted.
    """
    xx, yy, t, pixel = _view(height, width, frames, device, pixel)
    video = torch.empty(len(scenes), len(t), height, width, 3, device=device)
    for name in {s.background for s in scenes}:
        rows = [i for i, s in enumerate(scenes) if s.background == name]
        chosen = [scenes[i] for i in rows]
        X, Y, zoom = _camera(chosen, xx, yy, t)
        phase = torch.tensor([s.phase for s in chosen], device=device)
        grain = _column([s.grain for s in chosen], device)
        where = (X * grain, Y * grain, pixel * zoom * grain)
        painted = _BACKGROUND[name](*where, phase[:, :, None, None, None])
        video[rows] = painted.expand(-1, len(t), -1, -1, -1)
    for rows, objects, u, v, px in _layers(scenes, xx, yy, t, pixel):
        video[rows] = _paint(objects, u, v, px, video[rows])
    return video.clamp_(0, 1)


def coverage(
    scenes: list[Scene],
    height: int,
    width: int,
    frames: int | Tensor,
    pixel: float | None = None,
) -> Tensor:
    """Share of each pixel that objects cover, (B, frames, height, width) in [0, 1]; see `render`."""
    xx, yy, t, pixel = _view(height, width, frames, "cpu", pixel)
    covered = torch.zeros(len(scenes), len(t), height, width)
    for rows, objects, u, v, px in _layers(scenes, xx, yy, t, pixel):
        cover = _soft(_distances(objects, u, v), px)
        covered[rows] = torch.maximum(covered[rows], cover)
    return covered


def _view(height, width, frames, device, pixel):
    """Coordinates (height, width) of the pixels' centres, times (T,), and the side of a pixel."""
    t = torch.linspace(0, 1, frames) if isinstance(frames, int) else frames
    pixel = pixel or 2.0 / height
    y = (torch.arange(height, device=device) + 0.5 - height / 2) * pixel
    x = (torch.arange(width, device=device) + 0.5 - width / 2) * pixel
    return *torch.meshgrid(x, y, indexing="xy"), t.to(device), pixel


def _camera(scenes, xx, yy, t):
    """World coordinates seen at each pixel: (B, T or 1, H, W) each, and world units per unit."""
    if all(s.camera == "still" for s in scenes):
        shape = (len(scenes), 1, *xx.shape)
        return xx.expand(shape), yy.expand(shape), torch.ones(1, 1, 1, 1, device=xx.device)
    path = {"still": 0 * t, "in": 0.25 - 0.5 * t, "out": 0.5 * t - 0.25, "pan": 0 * t}
    zoom = torch.stack([1 + path[s.camera] for s in scenes])[:, :, None, None]
    pan = torch.stack([0.8 * (t - 0.5) * (s.camera == "pan") for s in scenes])[:, :, None, None]
    return xx * zoom + pan, yy * zoom, zoom


def _column(values, device) -> Tensor:
    return torch.tensor(values, device=device, dtype=torch.float32).view(-1, 1, 1, 1)


def _layers(scenes, xx, yy, t, pixel):
    """The k-th objects, rear to front: (scenes' rows, objects, u, v, pixel's width).

    u, v: coordinates in units of each object's radius, turned with it.
    """
    for k in range(max(len(s.objects) for s in scenes)):
        rows = [i for i, s in enumerate(scenes) if len(s.objects) > k]
        X, Y, zoom = _camera([scenes[i] for i in rows], xx, yy, t)
        objects = [scenes[i].objects[k] for i in rows]
        paths = [_path(o, t) for o in objects]
        cx, cy, grow, turn = (torch.stack(p)[:, :, None, None] for p in zip(*paths, strict=True))
        radius = _column([o.radius for o in objects], X.device) * grow
        c, s = torch.cos(turn), torch.sin(turn)
        dx, dy = (X - cx) / radius, (Y - cy) / radius
        yield rows, objects, c * dx + s * dy, c * dy - s * dx, pixel * zoom / radius


def _path(o: Object, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre, radius factor and rotation of an object over time, each (T,)."""
    s = t - 0.5
    dx = {"right": 1.0, "left": -1.0}.get(o.motion, 0.0) * s
    dy = {"down": 0.7, "up": -0.7}.get(o.motion, 0.0) * s
    grow = {"grows": 0.6, "shrinks": -0.6}.get(o.motion, 0.0)
    spin = 2.6 if o.motion == "spins" else 0.0
    return o.x + dx, o.y + dy, 1 + grow * s, o.angle + spin * s


def _distances(objects, u, v):
    """Signed distance to each object's outline, in units of its radius."""
    distance = torch.empty_like(u)
    for shape in {o.shape for o in objects}:
        rows = [i for i, o in enumerate(objects) if o.shape == shape]
        distance[rows] = DISTANCE[shape](u[rows], v[rows])
    return distance


def _paint(objects, u, v, px, under):
    """Objects over the video beneath them; same shape as `under`."""
    distance, shade = _distances(objects, u, v), torch.zeros_like(u)
    for texture in {o.texture for o in objects} - {"plain"}:
        rows = [i for i, o in enumerate(objects) if o.texture == texture]
        shade[rows] = _TEXTURE[texture](u[rows], v[rows], px.expand_as(u)[rows])
    ink = torch.tensor([COLOURS[o.colour] for o in objects], device=u.device)[:, None, None, None]
    bright = ink.mean(-1, keepdim=True)
    light = torch.where(bright > 0.9, ink * 0.45, ink + (1 - ink) * 0.72)
    edge = torch.where(bright < 0.2, 0.62 + 0 * ink, ink * 0.22)
    inside = ink + (light - ink) * shade[..., None]
    outline = _soft(distance + 0.13, px)[..., None]  # 1 deep inside, 0 in the rim
    body = edge + (inside - edge) * outline
    cover = _soft(distance, px)[..., None]
    return under + (body - under) * cover


def _soft(distance, px):
    """Coverage of a pixel of width px by the region distance < 0."""
    return (0.5 - distance / px).clamp(0, 1)


def _star(u, v, points=5, inner=0.48):
    radius = torch.sqrt(u * u + v * v)
    step = 2 * math.pi / points
    fold = (torch.remainder(torch.atan2(u, -v) + step / 2, step) - step / 2).abs()
    ix, iy = inner * math.cos(step / 2), inner * math.sin(step / 2)
    nx, ny = iy, 1 - ix  # normal of the edge from the tip (1, 0) to the notch (ix, iy)
    norm = math.hypot(nx, ny)
    return ((radius * torch.cos(fold) - 1) * nx + radius * torch.sin(fold) * ny) / norm


def _cross(u, v, arm=0.36):
    a, b = u.abs(), v.abs()
    return torch.minimum(torch.maximum(a - 1, b - arm), torch.maximum(b - 1, a - arm))


DISTANCE = {
    "ball": lambda u, v: torch.sqrt(u * u + v * v) - 0.95,
    "square": lambda u, v: torch.maximum(u.abs(), v.abs()) - 0.80,
    "triangle": lambda u, v: torch.maximum(0.866 * u.abs() - 0.5 * (v - 0.2), v - 0.2) - 0.58,
    "star": lambda u, v: _star(u / 1.1, v / 1.1) * 1.1,
    "ring": lambda u, v: (torch.sqrt(u * u + v * v) - 0.68).abs() - 0.30,
    "cross": _cross,
}


def _wave(a, period, px):
    """Anti-aliased square wave in [0, 1] of the coordinate a."""
    s = torch.remainder(a / period, 1.0)
    return ((0.25 - (s - 0.5).abs()) * period / px + 0.5).clamp(0, 1)


_TEXTURE = {
    "striped": lambda u, v, px: _wave(u, 0.62, px),
    "dotted": lambda u, v, px: _soft(
        torch.hypot(torch.remainder(u, 0.5) - 0.25, torch.remainder(v, 0.5) - 0.25) - 0.14, px
    ),
    "checkered": lambda u, v, px: (_wave(u, 0.9, px) - _wave(v, 0.9, px)).abs(),
}


def _mix(low, high, a):
    low, high = (torch.tensor(c, device=a.device) for c in (low, high))
    return low + (high - low) * a[..., None]


def _sky(X, Y, px, p):
    a = 0.0
    for k, (fx, fy) in enumerate([(1.1, 1.9), (2.3, -1.3), (-1.7, 3.1), (3.4, 2.2)]):
        a = a + torch.sin(fx * X + fy * Y + 6.283 * p[:, k]) / (1 + 0.4 * k)
    return _mix((0.30, 0.55, 0.95), (0.94, 0.96, 1.0), (0.35 * a + 0.28 * (Y + 0.3)).clamp(0, 1))


def _grass(X, Y, px, p):
    bend = X + 0.12 * torch.sin(2.0 * Y + 6.283 * p[:, 0])
    a = torch.sin(15.0 * bend + 6.283 * p[:, 1] + 1.2 * torch.sin(2.6 * Y + 6.283 * p[:, 2]))
    b = torch.sin(6.3 * bend + 6.283 * p[:, 3] + 0.8 * torch.sin(1.7 * Y + 6.283 * p[:, 2]))
    return _mix((0.10, 0.36, 0.07), (0.42, 0.74, 0.20), 0.5 + 0.28 * a + 0.22 * b)


def _sand(X, Y, px, p):
    a = torch.sin(9.0 * Y + 0.9 * torch.sin(1.9 * X + 6.283 * p[:, 0]) + 6.283 * p[:, 1])
    return _mix((0.72, 0.55, 0.29), (0.95, 0.83, 0.56), 0.5 + 0.5 * a)


def _night(X, Y, px, p):
    """One star in most cells of a lattice of fixed world size, on dark blue."""
    cell = 0.42
    gx, gy = X / cell + 8 * p[:, 0], Y / cell + 8 * p[:, 1]
    ix, iy = torch.floor(gx), torch.floor(gy)
    h1 = torch.remainder(torch.sin(ix * 12.9898 + iy * 78.233) * 43758.5453, 1.0)
    h2 = torch.remainder(torch.sin(ix * 39.346 + iy * 11.135) * 24634.6345, 1.0)
    dx, dy = gx - ix - 0.25 - 0.5 * h1, gy - iy - 0.25 - 0.5 * h2
    star = _soft(torch.hypot(dx, dy) * cell - 0.055, px) * (h1 + h2 > 0.45)
    return _mix((0.03, 0.03, 0.14), (1.0, 1.0, 0.9), star)


def _bricks(X, Y, px, p):
    w, h, joint = 0.80, 0.40, 0.03
    gy = Y / h + 4 * p[:, 1]
    row = torch.floor(gy)
    gx = X / w + 0.5 * torch.remainder(row, 2) + 4 * p[:, 0]
    fx, fy = torch.remainder(gx, 1.0) - 0.5, gy - row - 0.5
    inside = torch.maximum(fx.abs() * w - w / 2, fy.abs() * h - h / 2) + joint
    return _mix((0.80, 0.76, 0.70), (0.62, 0.22, 0.16), _soft(inside, px))


def _floor(X, Y, px, p):
    a = (_wave(X + p[:, 0], 1.0, px) - _wave(Y + p[:, 1], 1.0, px)).abs()
    return _mix((0.42, 0.42, 0.45), (0.66, 0.66, 0.69), a)


_BACKGROUND = {"sky": _sky, "grass": _grass, "sand": _sand}
_BACKGROUND |= {"night": _night, "bricks": _bricks, "floor": _floor}
