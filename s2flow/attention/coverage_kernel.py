"""The Triton kernel behind `coverage.py`: log sum exp of sampled query rows over every brick of keys.

    lse(i, b) = log sum_{j in b} exp(q_i k_j^T / sqrt(d))

Keys of PER bricks are one tile, each fetched by its slot; a row's logits never leave the registers.
Checked: in Triton's interpreter, and compiled for sm_80, 90 and 100 (`experiments/compile_kernels.py`).
Not yet run on a GPU.
"""

import triton
import triton.language as tl

from s2flow.attention.window_kernel import LN_2, LOG2_E, dot


@triton.jit(do_not_specialize=("n_rows", "n_bricks"))
def brick_sums(
    Q, K, chosen, slots, Out,
    q_b, q_h, q_l, k_b, k_h, k_l,
    n_rows, n_bricks,
    VOLUME: tl.constexpr, PER: tl.constexpr, EACH: tl.constexpr,
    D: tl.constexpr, D_PADDED: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Program = (EACH tiles of PER bricks, head, clip and tile of rows).

    chosen: n_rows query rows, then for each clip the end of its real keys, int32; slots:
    (n_bricks, VOLUME) int32, -1 for none; Out: (B, heads, n_bricks, n_rows) float32, -inf for a
    brick without keys.
    """
    SCALE: tl.constexpr = LOG2_E / D**0.5
    row_tiles = (n_rows + BLOCK_R - 1) // BLOCK_R
    clip, tile = tl.program_id(2) // row_tiles, tl.program_id(2) % row_tiles
    b, h = clip.to(tl.int64), tl.program_id(1).to(tl.int64)
    i, d = tile * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, D_PADDED)
    n, j = tl.arange(0, PER * VOLUME), tl.arange(0, PER)
    row = tl.load(chosen + i, mask=i < n_rows, other=0).to(tl.int64)
    end = tl.load(chosen + n_rows + clip)
    q_at = Q + b * q_b + h * q_h + row[:, None] * q_l + d[None, :]
    q = tl.load(q_at, mask=(i < n_rows)[:, None] & (d[None, :] < D), other=0.0)
    K += b * k_b + h * k_h
    Out += (b * tl.num_programs(1) + h) * n_bricks * n_rows
    for r in range(EACH):
        first = (tl.program_id(0) * EACH + r) * PER
        slot = tl.load(
            slots + first * VOLUME + n, mask=first * VOLUME + n < n_bricks * VOLUME, other=-1
        )
        there = (slot >= 0) & (slot < end)
        k_at = K + slot.to(tl.int64)[:, None] * k_l + d[None, :]
        k = tl.load(k_at, mask=there[:, None] & (d[None, :] < D), other=0.0)
        s = dot(q, tl.trans(k), tl.zeros((BLOCK_R, PER * VOLUME), tl.float32)) * SCALE
        s = tl.reshape(tl.where(there[None, :], s, float("-inf")), (BLOCK_R, PER, VOLUME))
        top = tl.max(s, 2)
        top = tl.where(top == float("-inf"), 0.0, top)  # a brick without keys
        lse = (top + tl.log2(tl.sum(tl.exp2(s - top[:, :, None]), 2))) * LN_2
        to = (first + j).to(tl.int64)[None, :] * n_rows + i[:, None]
        tl.store(Out + to, lse, mask=(first + j < n_bricks)[None, :] & (i < n_rows)[:, None])
