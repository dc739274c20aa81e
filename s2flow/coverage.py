"""Coverage: the share of its attention that a head gives to each window (Eq. 8).

    r(w)       = sum_ij A_ij M_ij(w) / sum_ij A_ij                over R sampled query rows i  (Eq. 8)
    mass(i, b) = sum_{j in b} exp(q_i k_j^T / sqrt(d)) / sum_j exp(q_i k_j^T / sqrt(d))

One pass over the keys gives the mass of every brick b; three small contractions of these give r of
every box size of the brick grid at once. Only the R sampled rows of A are computed, and of these only a
sum per brick is kept: as a logarithm by the Triton kernel (`attention/coverage_kernel.py`), beside the
running maximum in plain torch. Text keys take part in the softmax as further bricks, whose share is
left out. Results stay on the device, for which the host never waits. Tokens are row-major.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s2flow.attention import Problem, triton
from s2flow.attention.order import to_device
from s2flow.grid import Box, brick_grid, brick_ids, brick_slots, window_starts

COVERAGE_BYTES = 2**30  # of attention rows that exist at once
KEYS = 2**12  # of a piece in plain torch
LARGEST = 256  # tokens of a brick, for the kernel


def coverage_bytes(
    k: tuple[int, ...], rows: int, limit: int = COVERAGE_BYTES, bricks: int | None = None
) -> int:
    """Bytes that `coverage_by_heads` needs at once, at most, for k of this shape (B, heads, L, d).

    bricks: of the grid; None: as many as tokens. The Triton kernel needs no logits, and so less.
    """
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
    """Eq. 8 for every box size, (B, heads, g_t, g_h, g_w), as many heads at once as fit `limit` bytes.

    q, k: (B, heads, L, d), rows: (R,) on the CPU; text: how many of each clip's L - T*H*W text keys are
    real, None for all.
    """
    bricks = math.prod(brick_grid(tokens, brick))
    n = max(limit // coverage_bytes((len(k), 1, *k.shape[2:]), len(rows), 1, bricks), 1)
    at = (rows, tokens, brick)
    kernel = q.is_cuda and math.prod(brick) <= LARGEST
    kernel = kernel and _kernel_is_right(q.device, q.dtype, q.shape[-1], tuple(brick))
    masses_of = masses_by_kernel if kernel else masses
    parts = zip(q.split(n, 1), k.split(n, 1), strict=True)
    return torch.cat([coverage_of_masses(masses_of(*qk, *at, text), *at) for qk in parts], 1)


def sample_rows(length: int, rows: int, seed: int) -> Tensor:
    """Stratified query rows: one at a random place in each of `rows` equal stretches, sorted."""
    if rows >= length:
        return torch.arange(length)
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(rows, generator=generator)
    return ((torch.arange(rows) + u) * length / rows).long().clamp(max=length - 1)


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
    """Softmax weights of some query rows, (B, heads, R, n_video) float32; see `coverage_by_heads`."""
    scale = q.shape[-1] ** -0.5
    logits = (q[:, :, rows].float() * scale) @ k.float().transpose(-1, -2)
    for i, n_text in enumerate(text or ()):
        logits[i, ..., n_video + n_text :] = -math.inf
    return logits.softmax(-1)[..., :n_video]


def coverage_of_masses(pooled: Tensor, rows: Tensor, tokens: Box, brick: Box) -> Tensor:
    """Eq. 8 for every box size from (B, heads, R, bricks), what the rows give to every brick.

    rows: (R,) on the CPU; nothing waits for the device of `pooled`, where the outcome stays.
    """
    g = brick_grid(tokens, brick)
    mass = pooled.unflatten(-1, g)  # (B, heads, R, g_t, g_h, g_w)
    brick_of = torch.stack(torch.unravel_index(rows.cpu(), tokens), -1) // torch.tensor(brick)
    inside_of = (axis_windows(n)[brick_of[:, i]] for i, n in enumerate(g))
    I_t, I_h, I_w = (to_device(x, pooled.device) for x in inside_of)
    inside = torch.einsum("bmrthw,rzw->bmrthz", mass, I_w)
    inside = torch.einsum("bmrthz,ryh->bmrtyz", inside, I_h)
    inside = torch.einsum("bmrtyz,rxt->bmxyz", inside, I_t)
    return inside / pooled.sum((-1, -2))[..., None, None, None]


def masses(q, k, rows, tokens: Box, brick: Box, text=None, keys: int = KEYS) -> Tensor:
    """Attention of the rows summed over each brick of video keys, (B, heads, R, bricks) float32.

    In plain torch, `keys` keys at a time; text is one more brick.
    """
    n_video, L, bricks = math.prod(tokens), k.shape[2], math.prod(brick_grid(tokens, brick))
    brick_of = _brick_of_keys(tokens, brick, L, q.device)
    x = q.index_select(2, to_device(rows, q.device)).float() * q.shape[-1] ** -0.5
    pooled = x.new_zeros(*x.shape[:3], bricks + 1)
    top = x.new_full((*x.shape[:3], 1), -math.inf)
    for at in range(0, L, keys):
        logits = x @ k[:, :, at : at + keys].float().transpose(-1, -2)
        for i, n_text in enumerate(text or ()):
            logits[i, ..., max(n_video + n_text - at, 0) :] = -math.inf
        new = torch.maximum(top, logits.amax(-1, keepdim=True))
        p = logits.sub_(new).exp_()
        pooled.mul_((top - new).exp_()).index_add_(-1, brick_of[at : at + keys], p)
        top = new
    return pooled[..., :-1] / pooled.sum(-1, keepdim=True)


def masses_by_kernel(q, k, rows, tokens: Box, brick: Box, text=None) -> Tensor:
    """`masses` by the Triton kernel: text is a few more bricks."""
    from s2flow.attention import coverage_kernel  # needs the package triton

    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    (B, heads, L, d), n_video = k.shape, math.prod(tokens)
    slots, n = _padded_slots(tokens, brick, L, q.device)
    end = torch.tensor([n_video + i for i in text] if text else [L] * B, dtype=torch.int32)
    chosen = to_device(torch.cat([rows.int(), end]), q.device)  # one transfer
    lse = torch.empty(B, heads, len(slots), len(rows), device=q.device)
    many = len(slots) * slots.shape[1] > 2**12
    options = launch_options(d, q.dtype, math.prod(brick), many)
    groups = math.ceil(len(slots) / options["PER"] / options["EACH"])
    grid = (groups, heads, B * math.ceil(len(rows) / options["BLOCK_R"]))
    sizes = (*q.stride()[:3], *k.stride()[:3], len(rows), len(slots))
    with torch.cuda.device(q.device if q.is_cuda else -1):
        coverage_kernel.brick_sums[grid](q, k, chosen, slots, lse, *sizes, **options)
    return lse.softmax(2)[:, :, :n].transpose(2, 3)


def launch_options(d: int, dtype: torch.dtype, volume: int, many: bool) -> dict[str, int]:
    """Constants of the kernel; many: whether there are more keys than fill the GPU."""
    half, padded = dtype.itemsize == 2, 1 << (volume - 1).bit_length()
    return {
        **{"D": d, "D_PADDED": 1 << (d - 1).bit_length(), "VOLUME": padded},
        "PER": max((64 if half else 32) // padded, 1),  # bricks of a tile
        "EACH": 8 if many else 1,  # tiles of a program
        "BLOCK_R": 128 if half else 32,
        **{"num_warps": 8 if half else 4, "num_stages": 3},
    }


@functools.lru_cache(maxsize=16)
def _brick_of_keys(tokens: Box, brick: Box, L: int, device: torch.device) -> Tensor:
    """(L,) the brick of every key, row-major; text is the one behind the last."""
    ids = brick_ids(tokens, brick)
    last = math.prod(brick_grid(tokens, brick))
    return F.pad(ids, (0, L - len(ids)), value=last).to(device)


@functools.lru_cache(maxsize=16)
def _padded_slots(tokens: Box, brick: Box, L: int, device: torch.device) -> tuple[Tensor, int]:
    """(bricks and those of text, volume) int32, the volume a power of two; and how many bricks."""
    slots = brick_slots(tokens, brick)
    n, volume = slots.shape
    behind = torch.arange(math.prod(tokens), L)
    behind = F.pad(behind, (0, -len(behind) % volume), value=-1).view(-1, volume)
    padding = (1 << (volume - 1).bit_length()) - volume
    both = F.pad(torch.cat([slots, behind]), (0, padding), value=-1)
    return both.to(device, torch.int32), n


@functools.cache
def _kernel_is_right(device: torch.device, dtype: torch.dtype, d: int, brick: Box) -> bool:
    """Whether the kernel can be used and agrees with plain torch on small grids, one of them ragged."""
    try:
        if triton.unusable(Problem(brick, brick, d, dtype, device)) is not None:
            return False
        off = 0.0
        for cut in (0, 1):
            tokens = tuple(3 * b - cut * (b // 2) for b in brick)
            shape = (2, 2, 2, math.prod(tokens) + 7, d)
            q, k = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
            call = (q, k, torch.arange(0, math.prod(tokens), 5), tokens, brick, [5, 7])
            off += float((masses_by_kernel(*call) - masses(*call)).abs().max())
        return off < 1e-4  # NaN is not
    except Exception:  # whatever the compiler may raise: the plain path remains
        return False


class Recorder:
    """Coverage of every window (Eq. 8) during an LR flow: called with each layer's q and k.

    router: the backbone's; tokens, brick: of LR; rows: query rows sampled per head; steps: N. Where a
    cache skips a layer (`backbones.caches`), that of the last step which computed it counts; reused:
    by steps remaining, how many layers that were.
    """

    def __init__(self, router: Any, tokens: Box, brick: Box, rows: int, steps: int) -> None:
        self.router, self.tokens, self.brick, self.rows, self.n = (
            router,
            tokens,
            brick,
            rows,
            steps,
        )
        self.observed = 0
        self.latest: list[Tensor | None] = [None] * self.router.layers
        self.seen: set[int] = set()
        self.steps: list[Tensor] = []  # (layers, B, heads, g_t, g_h, g_w) of each step
        self.reused: dict[str, int] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor) -> None:
        """One layer's queries and keys; the result stays on their device."""
        seed = 1000 * self.observed + layer
        rows = sample_rows(math.prod(self.tokens), self.rows, seed=seed)
        by_head = coverage_by_heads(q, k, rows, self.tokens, self.brick, self.router.text)
        self.latest[layer] = self.router.all_heads(by_head)
        self.seen.add(layer)
        self.observed += 1

    def finish_step(self) -> None:
        """One synchronisation with the device per step."""
        if len(self.seen) < self.router.layers:
            self.reused[str(self.n - len(self.steps))] = self.router.layers - len(self.seen)
        self.steps.append(torch.stack(self.latest).cpu())
        self.seen.clear()

    def table(self) -> Tensor:
        """(N+1, layers, B, heads, g_t, g_h, g_w) by steps remaining; row 0 is never used."""
        by_step = torch.stack(self.steps).flip(0)
        return torch.cat([by_step[:1], by_step])
