"""Where the attention of some query rows goes, brick by brick: what Eq. 8 is summed from.

    mass(i, b) = sum_{j in b} exp(q_i k_j^T / sqrt(d)) / sum_j exp(q_i k_j^T / sqrt(d))

One pass over the keys. Only the R sampled rows are computed, and of these only a sum for each brick is
kept: as a logarithm by the Triton kernel (`coverage_kernel.py`), with a softmax over bricks at the end;
beside the running maximum in plain torch. Text stands behind the bricks: it takes part in the softmax,
and its share is left out. The outcome stays on the device, and the host never waits for it.

Tokens are row-major, as the LR model has them.
"""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from s2flow.windows import Box, brick_grid, brick_ids

KEYS = 2**12  # of a piece in plain torch
LARGEST = 256  # tokens of a brick, for the kernel


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the CPU, without making the host wait for the device."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def brick_masses(
    q: Tensor,
    k: Tensor,
    rows: Tensor,
    tokens: Box,
    brick: Box,
    text: Sequence[int] | None = None,
) -> Tensor:
    """Softmax weights of some query rows over all keys, summed over each brick of video keys.

    q, k: (B, heads, L, d), rows: (R,) on the CPU; returns (B, heads, R, bricks) float32 on q's
    device. text: how many of each clip's L - T*H*W text keys are real, None for all.
    """
    fits = q.is_cuda and math.prod(brick) <= LARGEST
    if fits and _kernel_is_right(q.device, q.dtype, q.shape[-1], tuple(brick)):
        return masses_by_kernel(q, k, rows, tokens, brick, text)
    return masses(q, k, rows, tokens, brick, text)


def masses(q, k, rows, tokens: Box, brick: Box, text=None, keys: int = KEYS) -> Tensor:
    """`brick_masses` in plain torch, `keys` keys at a time; text is one more brick."""
    n_video, L = math.prod(tokens), k.shape[2]
    brick_of = _brick_of_keys(tokens, brick, L, q.device)
    x = q.index_select(2, to_device(rows, q.device)).float() * q.shape[-1] ** -0.5
    pooled = x.new_zeros(*x.shape[:3], math.prod(brick_grid(tokens, brick)) + 1)
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
    """`brick_masses` by the Triton kernel: text is a few more bricks."""
    from s2flow.attention import coverage_kernel

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
    with torch.cuda.device(q.device if q.is_cuda else -1):
        coverage_kernel.brick_sums[grid](
            *(q, k, chosen, slots, lse, *q.stride()[:3], *k.stride()[:3], len(rows), len(slots)),
            **options,
        )
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
    from s2flow.attention.bricks import brick_slots

    slots = brick_slots(tokens, brick)
    n, volume = slots.shape
    behind = torch.arange(math.prod(tokens), L)
    behind = F.pad(behind, (0, -len(behind) % volume), value=-1).view(-1, volume)
    both = F.pad(
        torch.cat([slots, behind]), (0, (1 << (volume - 1).bit_length()) - volume), value=-1
    )
    return both.to(device, torch.int32), n


@functools.cache
def _kernel_is_right(device: torch.device, dtype: torch.dtype, d: int, brick: Box) -> bool:
    """Whether the kernel can be used and agrees with plain torch on small grids, one of them ragged."""
    from s2flow.attention import triton

    try:
        probe = torch.empty(0, 1, 1, d, device=device, dtype=dtype)
        if triton.unusable(probe, brick) is not None:
            return False
        return all(
            _kernel_agrees(device, dtype, d, brick, tuple(3 * b - cut * (b // 2) for b in brick))
            for cut in (0, 1)
        )
    except Exception:  # whatever the compiler may raise: the plain path remains
        return False


def _kernel_agrees(device, dtype, d: int, brick: Box, tokens: Box) -> bool:
    shape = (2, 2, 2, math.prod(tokens) + 7, d)
    q, k = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    call = (q, k, torch.arange(0, math.prod(tokens), 5), tokens, brick, [5, 7])
    return bool((masses_by_kernel(*call) - masses(*call)).abs().max() < 1e-4)
