"""LRG-WinAttn: which 3-D window is enough for each head, as LR attention tells it (Eqs. 7-9).

Windows are boxes of whole bricks (`grid.py`). Each query brick attends the box centred on it, shifted
inward at the borders, so that every query sees the same number of keys on grids that the brick
divides. Brick (1,1,1) is the exact per-token definition and the reference for everything else.

    candidates   boxes of equal volume f: sides g f^a, g f^b, g f^c with a + b + c = 1
    coverage     r(w) = sum A M(w) / sum A per step, layer, head, in `coverage.py`          (Eq. 8)
    choice       argmax over candidates                                                     (Eq. 9)
    plan         the chosen boxes of all steps, layers and heads, in `plan.py`

Coverage is recorded once for *every* box size of the brick grid, so that no sparsity, density, hand-off
or candidate set ever needs the LR run again.

Deviation: "a fixed proportion s of the latent volume" (density="volume", f = s) contradicts the paper's
clock, which only f = s^3 (density="per_axis") explains. Both are first-class; f is always recorded.
Deviation: Eq. 7 multiplies logits by a 0/1 mask, which leaves masked keys the weight e^0. Here masked
means -inf, and every window holds the query's own brick, so that no row is empty.
"""

import itertools
import math

import torch
from torch import Tensor

from s2flow.errors import UserError
from s2flow.grid import Box, brick_grid, realised_density

CUBE = (1 / 3, 1 / 3, 1 / 3)
DEFAULT_EXPONENTS = (
    *((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    *((1 / 2, 1 / 2, 0), (1 / 2, 0, 1 / 2), (0, 1 / 2, 1 / 2), CUBE),
)
TOLERANCE = 0.05  # relative deviation of a candidate's volume from f


def fraction_of_volume(sparsity: float, density: str) -> float:
    """Requested f: the share of query-key pairs that a sparsity s keeps, under each reading."""
    return sparsity if density == "volume" else sparsity**3


def ideal_sides(f: float, exponents: tuple[float, float, float], g: Box) -> list[float]:
    """Sides g f^a in bricks; a side under one brick is clamped and its excess handed on."""
    logs = [a * math.log(f) for a in exponents]  # log of the fraction of each axis
    free = [0, 1, 2]
    while free:
        short = [i for i in free if logs[i] + math.log(g[i]) < -1e-9]
        if not short:
            break
        for i in short:
            excess = logs[i] + math.log(g[i])
            logs[i] = -math.log(g[i])
            free.remove(i)
            takers = [j for j in free if exponents[j] > 0] or free
            for j in takers:
                logs[j] += excess / len(takers)
    return [gi * math.exp(x) for gi, x in zip(g, logs, strict=True)]


def nearest_box(sides: list[float], f: float, g: Box) -> Box | None:
    """The integer box within +-5 % of volume f that is nearest to `sides` in log lengths."""
    volume = f * math.prod(g)
    least, nearest = math.inf, None
    for box in all_boxes(g):
        if abs(math.prod(box) - volume) <= TOLERANCE * volume + 1e-9:
            distance = _distance(box, sides)
            if distance < least - 1e-12:
                least, nearest = distance, box
    return nearest


def all_boxes(g: Box) -> list[Box]:
    """Every box size of a brick grid."""
    return list(itertools.product(*(range(1, n + 1) for n in g)))


def _distance(box: Box, sides: list[float]) -> float:
    return sum(math.log(w / s) ** 2 for w, s in zip(box, sides, strict=True))


def candidates(f: float, exponents: list, g: Box) -> list[Box]:
    """Equal-volume boxes of a brick grid, in the order of their exponents, without duplicates.

    Raises UserError if no box of the grid has a volume within 5 % of f.
    """
    boxes = []
    for e in exponents:
        box = nearest_box(ideal_sides(f, tuple(e), g), f, g)
        if box is not None and box not in boxes:
            boxes.append(box)
    if not boxes:
        volumes = {math.prod(b) for b in all_boxes(g)}
        nearest = min((v / math.prod(g) for v in volumes), key=lambda x: abs(math.log(x / f)))
        raise UserError(
            f"no window of the {g[0]}x{g[1]}x{g[2]} brick grid keeps f = {f:.4g} of the volume; "
            f"the nearest reachable f is {nearest:.4g} (sparsity={nearest:.4g} with "
            f"density=volume, sparsity={nearest ** (1 / 3):.4g} with density=per_axis)"
        )
    return boxes


def choose(coverage: Tensor, boxes: list[Box]) -> Tensor:
    """Eq. 9: per head the candidate with the highest coverage; the first one among equals.

    coverage (..., g_t, g_h, g_w) of all box sizes; returns (..., 3) int16.
    """
    r = torch.stack([coverage[..., a - 1, b - 1, c - 1] for a, b, c in boxes], -1)
    return torch.tensor(boxes, dtype=torch.int16)[r.argmax(-1)]


def choose_by_target(coverage: Tensor, target: float, cap: float = 1.0) -> Tensor:
    """Beyond the paper: per head the smallest box that covers `target`; ties by coverage.

    Boxes larger than `cap` of the volume are never taken; a head that none of the others satisfies
    gets the one that covers most.
    """
    g = coverage.shape[-3:]
    sizes = all_boxes(g)
    volume = torch.tensor([math.prod(b) for b in sizes], dtype=torch.float32)
    whole = math.prod(g)
    r = coverage.flatten(-3)
    enough = volume - r  # coverage <= 1 only breaks ties
    lacking = whole * (3 - r) - 1e-3 * volume  # behind all that reach the target, best first
    cost = torch.where(r >= target - 1e-6, enough, lacking)
    cost = cost.masked_fill(volume > cap * whole + 1e-6, math.inf)
    return torch.tensor(sizes, dtype=torch.int16)[cost.argmin(-1)]


def to_grid(boxes: Tensor, g_from: Box, tokens: Box, brick: Box, f: float | None) -> Tensor:
    """Boxes of one brick grid carried to the grid of `tokens` and `brick`; often the identity.

    On another grid each box becomes, of those with a realised density within 5 % of f (of its own
    volume where f is None) or else of the closest, the one whose sides are nearest in fractions.
    """
    g_to = brick_grid(tokens, brick)
    if g_from == g_to:
        return boxes
    realised = {box: realised_density(tokens, brick, box) for box in all_boxes(g_to)}
    out = boxes.clone()
    for box in {tuple(b) for b in boxes.flatten(0, -2).tolist()}:
        wanted = f or math.prod(box) / math.prod(g_from)
        sides = [w * t / s for w, t, s in zip(box, g_to, g_from, strict=True)]

        def cost(new: Box, wanted: float = wanted, sides: list[float] = sides) -> tuple:
            off = abs(math.log(realised[new] / wanted))
            return (0.0 if off <= TOLERANCE else off, _distance(new, sides))

        new = torch.tensor(min(realised, key=cost), dtype=boxes.dtype)
        out[(boxes == torch.tensor(box, dtype=boxes.dtype)).all(-1)] = new
    return out
