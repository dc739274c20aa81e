"""LRG-WinAttn: which 3-D window is enough for each head, as LR attention tells it (Eqs. 7-9).

Tokens live on a grid (T, H, W), grouped in *bricks* (b_t, b_h, b_w); windows are boxes of whole bricks.
Each query brick i attends the box centred on it, shifted inward at the borders, per axis of g bricks

    start = clamp(i - floor(w/2), 0, g - w),        keys = bricks start ... start + w - 1,

so that every query sees the same number of keys on grids that the brick divides. Brick (1,1,1) is the
exact per-token definition and the reference for everything else.

    candidates   boxes of equal volume f: sides g f^a, g f^b, g f^c with a + b + c = 1
    coverage     r(w) = sum A M(w) / sum A per step, layer, head, from R sampled rows     (Eq. 8)
    choice       argmax over candidates                                                    (Eq. 9)
    plan         the chosen boxes of all steps, layers and heads, in `plan.py`

Coverage is recorded once for *every* box size of the brick grid (three small contractions give them
all), so that no sparsity, density, hand-off or candidate set ever needs the LR run again.

Deviation: "a fixed proportion s of the latent volume" (density="volume", f = s) contradicts the paper's
clock, which only f = s^3 (density="per_axis") explains. Both are first-class; f is always recorded.
Deviation: Eq. 7 multiplies logits by a 0/1 mask, which leaves masked keys the weight e^0. Here masked
means -inf, and every window holds the query's own brick, so that no row is empty.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from s2flow.errors import UserError

Box = tuple[int, int, int]

CUBE = (1 / 3, 1 / 3, 1 / 3)
DEFAULT_EXPONENTS = (
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
    (1 / 2, 1 / 2, 0),
    (1 / 2, 0, 1 / 2),
    (0, 1 / 2, 1 / 2),
    CUBE,
)
COVERAGE_BYTES = 2**30  # of attention rows that exist at once
TOLERANCE = 0.05  # relative deviation of a candidate's volume from f


def fraction_of_volume(sparsity: float, density: str) -> float:
    """Requested f: the share of query-key pairs that a sparsity s keeps, under each reading."""
    return sparsity if density == "volume" else sparsity**3


def brick_grid(tokens: Box, brick: Box) -> Box:
    """Number of bricks per axis, the last ones partly empty on ragged grids."""
    return tuple(math.ceil(n / b) for n, b in zip(tokens, brick, strict=True))


def window_starts(g: int, w: int) -> list[int]:
    """First brick of the window of each query brick along one axis, shifted inward."""
    return [min(max(i - w // 2, 0), g - w) for i in range(g)]


def realised_density(tokens: Box, brick: Box, box: Box) -> float:
    """Exact share of valid query-key pairs inside the window, in (0, 1]."""
    f = 1.0
    for n, b, w in zip(tokens, brick, box, strict=True):
        starts = window_starts(math.ceil(n / b), w)
        pairs = sum(
            (min((i + 1) * b, n) - i * b) * (min((s + w) * b, n) - s * b)
            for i, s in enumerate(starts)
        )
        f *= pairs / n**2
    return f


# -- candidates -------------------------------------------------------------------------------


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
    best, found = math.inf, None
    for box in itertools.product(*(range(1, n + 1) for n in g)):
        if abs(math.prod(box) - volume) > TOLERANCE * volume + 1e-9:
            continue
        distance = sum(math.log(w / s) ** 2 for w, s in zip(box, sides, strict=True))
        if distance < best - 1e-12:
            best, found = distance, box
    return found


def candidates(f: float, exponents: list, g: Box) -> list[Box]:
    """Equal-volume boxes of a brick grid, in the order of their exponents, without duplicates.

    Raises UserError if no box of the grid has a volume within 5 % of f.
    """
    found = []
    for e in exponents:
        box = nearest_box(ideal_sides(f, tuple(e), g), f, g)
        if box is not None and box not in found:
            found.append(box)
    if not found:
        volumes = {math.prod(b) for b in itertools.product(*(range(1, n + 1) for n in g))}
        nearest = min((v / math.prod(g) for v in volumes), key=lambda x: abs(math.log(x / f)))
        raise UserError(
            f"no window of the {g[0]}x{g[1]}x{g[2]} brick grid keeps f = {f:.4g} of the volume; "
            f"the nearest reachable f is {nearest:.4g} (sparsity={nearest:.4g} with "
            f"density=volume, sparsity={nearest ** (1 / 3):.4g} with density=per_axis)"
        )
    return found


# -- coverage (Eq. 8) -------------------------------------------------------------------------


def sample_rows(length: int, rows: int, seed: int) -> Tensor:
    """Stratified query rows: one at a random place in each of `rows` equal stretches, sorted."""
    if rows >= length:
        return torch.arange(length)
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(rows, generator=generator)
    return ((torch.arange(rows) + u) * length / rows).long().clamp(max=length - 1)


def brick_of_token(tokens: Box, brick: Box) -> Tensor:
    """(L, 3) brick coordinates of every token, row-major in (t, h, w)."""
    axes = [torch.arange(n) // b for n, b in zip(tokens, brick, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)


def brick_ids(tokens: Box, brick: Box) -> Tensor:
    """(L,) the brick of every token, tokens and bricks row-major."""
    g, where = brick_grid(tokens, brick), brick_of_token(tokens, brick)
    return (where[:, 0] * g[1] + where[:, 1]) * g[2] + where[:, 2]


@functools.lru_cache(maxsize=64)
def axis_windows(g: int) -> Tensor:
    """(g, g, g) 0/1: entry [i, w-1, j] says whether the window of width w around brick i holds j."""
    out = torch.zeros(g, g, g)
    for w in range(1, g + 1):
        for i, start in enumerate(window_starts(g, w)):
            out[i, w - 1, start : start + w] = 1
    return out


def attention_rows(
    q: Tensor, k: Tensor, rows: Tensor, n_video: int, text: Sequence[int] | None = None
) -> Tensor:
    """Softmax weights of some query rows over all keys, video keys only.

    q, k: (B, heads, L, d); returns (B, heads, R, n_video) float32. Text keys take part in the
    softmax and are then left out; text: how many of each clip's are real, None for all.
    """
    scale = q.shape[-1] ** -0.5
    logits = (q[:, :, rows].float() * scale) @ k.float().transpose(-1, -2)
    for i, n_text in enumerate(text or ()):
        logits[i, ..., n_video + n_text :] = -math.inf
    return logits.softmax(-1)[..., :n_video]


def coverage_of_all_boxes(A: Tensor, rows: Tensor, tokens: Box, brick: Box) -> Tensor:
    """Eq. 8 for every box size at once: (B, heads, g_t, g_h, g_w), entry [w_t-1, w_h-1, w_w-1].

    A: (B, heads, R, L) attention of the sampled rows, from `attention_rows`. The twin, with its rows
    written out, of `coverage_by_heads`.
    """
    ids, bricks = brick_ids(tokens, brick).to(A.device), math.prod(brick_grid(tokens, brick))
    pooled = A.new_zeros(*A.shape[:-1], bricks).index_add_(-1, ids, A)
    return coverage_of_masses(pooled, rows, tokens, brick)


def coverage_of_masses(pooled: Tensor, rows: Tensor, tokens: Box, brick: Box) -> Tensor:
    """Eq. 8 for every box size from (B, heads, R, bricks), what the rows give to every brick.

    rows: (R,) on the CPU; nothing waits for the device of `pooled`, where the outcome stays.
    """
    from s2flow.coverage import to_device

    g = brick_grid(tokens, brick)
    mass = pooled.unflatten(-1, g)  # (B, heads, R, g_t, g_h, g_w)
    mine = torch.stack(torch.unravel_index(rows.cpu(), tokens), -1) // torch.tensor(brick)
    inside_of = (axis_windows(n)[mine[:, i]] for i, n in enumerate(g))
    I_t, I_h, I_w = (to_device(x, pooled.device) for x in inside_of)
    inside = torch.einsum("bmrthw,rzw->bmrthz", mass, I_w)
    inside = torch.einsum("bmrthz,ryh->bmrtyz", inside, I_h)
    inside = torch.einsum("bmrtyz,rxt->bmxyz", inside, I_t)
    return inside / pooled.sum((-1, -2))[..., None, None, None]


def coverage_bytes(
    k: tuple[int, int, int, int],
    rows: int,
    limit: int = COVERAGE_BYTES,
    bricks: int | None = None,
) -> int:
    """Bytes that `coverage_by_heads` needs at once, at most, for k of this shape (B, heads, L, d).

    bricks: of the grid; None: as many as tokens. The Triton kernel needs no logits, and so less.
    """
    from s2flow.coverage import KEYS

    B, heads, L, d = k
    pieces = min(L, KEYS) * (2 * rows + d)  # logits, their exponentials, and k in float32
    one = 4 * B * (pieces + 4 * rows * (bricks or L))  # masses, and sums over one axis and another
    return one * min(max(limit // one, 1), heads)


def coverage_by_heads(
    q: Tensor,
    k: Tensor,
    rows: Tensor,
    tokens: Box,
    brick: Box,
    text: Sequence[int] | None = None,
    limit: int = COVERAGE_BYTES,
) -> Tensor:
    """Eq. 8 for every box size from q and k, where they are, as many heads at once as fit `limit`.

    Logits are formed for one piece of the keys at a time, or not at all: see `attention/coverage.py`.
    """
    from s2flow.coverage import brick_masses

    one = coverage_bytes(
        (len(k), 1, *k.shape[2:]), len(rows), 1, math.prod(brick_grid(tokens, brick))
    )
    n = max(limit // one, 1)
    return torch.cat(
        [
            coverage_of_masses(
                brick_masses(q[:, h : h + n], k[:, h : h + n], rows, tokens, brick, text),
                *(rows, tokens, brick),
            )
            for h in range(0, k.shape[1], n)
        ],
        1,
    )


def coverage_exact(A: Tensor, tokens: Box, brick: Box, box: Box) -> Tensor:
    """Eq. 8 to the letter for one box, from the whole attention map: the oracle of the tests.

    A: (B, heads, L, L), rows summing to 1 or less; returns (B, heads).
    """
    M = window_mask(tokens, brick, box).to(A)
    return (A * M).sum((-1, -2)) / A.sum((-1, -2))


def window_mask(tokens: Box, brick: Box, box: Box, rows: Tensor | None = None) -> Tensor:
    """M of Eq. 7: (L, L) bool, entry [i, j] says whether query i may see key j; rows: of these i."""
    where = brick_of_token(tokens, brick)
    mine = where if rows is None else where[rows]
    mask = torch.ones(len(mine), len(where), dtype=torch.bool)
    for axis, (g, w) in enumerate(zip(brick_grid(tokens, brick), box, strict=True)):
        start = torch.tensor(window_starts(g, w))[mine[:, axis]][:, None]
        key = where[:, axis][None, :]
        mask &= (key >= start) & (key < start + w)
    return mask


# -- choice (Eq. 9) ---------------------------------------------------------------------------


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
    sizes = list(itertools.product(*(range(1, n + 1) for n in g)))
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

    On another grid each box becomes the one whose realised density is within 5 % of f (of its own
    volume where f is None) and whose sides are nearest in fractions; where no box is that close,
    the one of the closest density.
    """
    g_to = brick_grid(tokens, brick)
    if g_from == g_to:
        return boxes
    every = list(itertools.product(*(range(1, n + 1) for n in g_to)))
    realised = {box: realised_density(tokens, brick, box) for box in every}
    out = boxes.clone()
    for box in {tuple(b) for b in boxes.flatten(0, -2).tolist()}:
        wanted = f or math.prod(box) / math.prod(g_from)
        sides = [w * t / s for w, t, s in zip(box, g_to, g_from, strict=True)]

        def cost(new: Box, wanted: float = wanted, sides: list[float] = sides) -> tuple:
            off = abs(math.log(realised[new] / wanted))
            shape = sum(math.log(w / s) ** 2 for w, s in zip(new, sides, strict=True))
            return (0.0 if off <= TOLERANCE else off, shape)

        new = torch.tensor(min(every, key=cost), dtype=boxes.dtype)
        out[(boxes == torch.tensor(box, dtype=boxes.dtype)).all(-1)] = new
    return out
