"""The Triton kernels behind `triton.py`: softmax attention of a tile of queries over runs of keys.

    s = q k^T / sqrt(d) log2(e)          m = max s,   p = 2^(s - m),   l = sum p,   acc = sum p v
    out = acc / l,    lse = (m + log2 l) ln 2              kept online, tile of keys by tile of keys

Tokens are in brick order (`order.py`): a window is w_t w_h runs of w_w bricks, each run contiguous. On
full grids all tiles of all runs are one loop, so that loads stay in flight from run to run; on ragged
grids runs differ in length and are loops of their own. Masks are written only where a tile may leave
its run: not at all where a brick is a whole number of tiles.

Windows are read from a table in memory: another window is another number, never another kernel.
Sources: Dao et al. 2022 and Milakov and Gimelshein 2018 for the online softmax.
Checked: in Triton's interpreter, and compiled for sm_80, 90 and 100 (`experiments/compile_kernels.py`).
Not yet run on a GPU.
"""

import os

import triton
import triton.language as tl

# the interpreter multiplies bfloat16 as the integers that stand for it
INTERPRETED: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
GRID = ("g_t", "g_h", "g_w", "length", "n_video", "n_text", "chunk")  # say nothing about alignment


@triton.jit
def dot(a, b, acc):
    """a b + acc in float32: no TF32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x in another type, to the nearest; the interpreter would cut what bfloat16 cannot hold."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def _step(acc, m, l, q, K, V, at, end, n, d, stride_k, stride_v, D, MASKED, SCALE):
    """One tile of keys, at ... at + len(n) - 1; where MASKED, those before `end`."""
    k_at = K + tl.cast(at, tl.int64) * stride_k + (n[:, None] * stride_k + d[None, :])
    v_at = V + tl.cast(at, tl.int64) * stride_v + (n[:, None] * stride_v + d[None, :])
    if MASKED:
        there = at + n < end
        k = tl.load(k_at, mask=there[:, None] & (d[None, :] < D), other=0.0)
    elif d.shape[0] == D:
        k = tl.load(k_at)
    else:
        k = tl.load(k_at, mask=d[None, :] < D, other=0.0)
    s = dot(q, tl.trans(k), tl.zeros((q.shape[0], k.shape[0]), tl.float32))
    if MASKED:
        s = tl.where(there[None, :], s, float("-inf"))
    top = tl.maximum(m, tl.max(s, 1) * SCALE)
    p = tl.exp2(s * SCALE - top[:, None])
    alpha = tl.exp2(m - top)
    l = l * alpha + tl.sum(p, 1)
    if MASKED:  # 0 times whatever stands behind the run may be NaN
        v = tl.load(v_at, mask=there[:, None] & (d[None, :] < D), other=0.0)
    elif d.shape[0] == D:
        v = tl.load(v_at)
    else:
        v = tl.load(v_at, mask=d[None, :] < D, other=0.0)
    acc = dot(rounded(p, v.dtype), v, acc * alpha[:, None])
    return acc, top, l


@triton.jit(do_not_specialize=GRID)
def windowed(
    Q, K, V, Out, Lse, windows, offsets,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, o_b, o_h, o_l,
    g_t, g_h, g_w, length, n_video,
    VOLUME: tl.constexpr, RAGGED: tl.constexpr, TEXT: tl.constexpr, LSE: tl.constexpr,
    D: tl.constexpr, D_PADDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Video queries: program = (tile of one brick's queries, head, clip).

    windows: (B, heads, 4) int32, the sides in bricks and the clip's real text keys; offsets:
    (bricks + 1) int32, read where RAGGED; lse: (B, heads, length).
    """
    SCALE: tl.constexpr = LOG2_E / D**0.5
    TILES: tl.constexpr = (VOLUME + BLOCK_M - 1) // BLOCK_M
    EVEN: tl.constexpr = VOLUME % BLOCK_N == 0
    brick, tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    head, clip = tl.program_id(1), tl.program_id(2)
    b, h = clip.to(tl.int64), head.to(tl.int64)
    K += b * k_b + h * k_h
    V += b * v_b + h * v_h
    table = windows + (clip * tl.num_programs(1) + head) * 4
    w_t, w_h, w_w = tl.load(table), tl.load(table + 1), tl.load(table + 2)
    t_0 = tl.minimum(tl.maximum(brick // (g_h * g_w) - w_t // 2, 0), g_t - w_t)
    h_0 = tl.minimum(tl.maximum(brick // g_w % g_h - w_h // 2, 0), g_h - w_h)
    w_0 = tl.minimum(tl.maximum(brick % g_w - w_w // 2, 0), g_w - w_w)

    if RAGGED:
        first, last = tl.load(offsets + brick) + tile * BLOCK_M, tl.load(offsets + brick + 1)
        if first >= last:
            return
    else:
        first, last = brick * VOLUME + tile * BLOCK_M, (brick + 1) * VOLUME
    i, n, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, D_PADDED)
    mine = (first + i < last)[:, None] & (d[None, :] < D)
    q_at = Q + b * q_b + h * q_h + first.to(tl.int64) * q_l + (i[:, None] * q_l + d[None, :])
    q = tl.load(q_at, mask=mine, other=0.0)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, D_PADDED), tl.float32)

    run = (t_0 * g_h + h_0) * g_w + w_0  # first brick of the first run
    if RAGGED:
        for r in range(w_t * w_h):
            here = run + (r // w_h * g_h + r % w_h) * g_w
            end = tl.load(offsets + here + w_w)
            for at in range(tl.load(offsets + here), end, BLOCK_N):
                acc, m, l = _step(acc, m, l, q, K, V, at, end, n, d, k_l, v_l, D, True, SCALE)
    else:
        run, c, r = run * VOLUME, w_w * 0, w_w * 0
        tiles = (w_w * VOLUME + BLOCK_N - 1) // BLOCK_N
        for _ in range(w_t * w_h * tiles):
            at, end = run + c * BLOCK_N, run + w_w * VOLUME
            acc, m, l = _step(acc, m, l, q, K, V, at, end, n, d, k_l, v_l, D, not EVEN, SCALE)
            c += 1
            r += tl.where(c == tiles, 1, 0)
            run += tl.where(c == tiles, g_w * VOLUME, 0)
            c = tl.where(c == tiles, 0, c)
            run += tl.where(r == w_h, (g_h - w_h) * g_w * VOLUME, 0)
            r = tl.where(r == w_h, 0, r)
    if TEXT:
        end = n_video + tl.load(table + 3)
        for at in range(n_video, end, BLOCK_N):
            acc, m, l = _step(acc, m, l, q, K, V, at, end, n, d, k_l, v_l, D, True, SCALE)

    o_at = Out + b * o_b + h * o_h + first.to(tl.int64) * o_l + (i[:, None] * o_l + d[None, :])
    tl.store(o_at, rounded(acc / l[:, None], Out.dtype.element_ty), mask=mine)
    if LSE:
        at = (b * tl.num_programs(1) + h) * length + first
        tl.store(Lse + at + i, (m + tl.log2(l)) * LN_2, mask=first + i < last)


@triton.jit(do_not_specialize=GRID)
def of_text(
    Q, K, V, Out, Lse, windows,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l,
    n_video, n_text, chunk,
    D: tl.constexpr, D_PADDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """Text queries over one of SPLITS chunks of all keys: program = (tile, head, clip and chunk).

    Out: (SPLITS, B, heads, n_text, d) float32, lse (SPLITS, B, heads, n_text), each chunk's own; 0 and
    -inf for padding and for a chunk without keys. Few queries over all keys: chunks fill the GPU.
    """
    SCALE: tl.constexpr = LOG2_E / D**0.5
    head, clip, split = tl.program_id(1), tl.program_id(2) // SPLITS, tl.program_id(2) % SPLITS
    b, h, heads = clip.to(tl.int64), head.to(tl.int64), tl.num_programs(1)
    K += b * k_b + h * k_h
    V += b * v_b + h * v_h
    real = tl.load(windows + (clip * heads + head) * 4 + 3)
    end = tl.minimum((split + 1) * chunk, n_video + real)
    i, n, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, D_PADDED)
    row = tl.program_id(0) * BLOCK_M + i
    mine = (row < real)[:, None] & (d[None, :] < D)
    q_at = Q + b * q_b + h * q_h + (n_video + row).to(tl.int64)[:, None] * q_l + d[None, :]
    q = tl.load(q_at, mask=mine, other=0.0)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, D_PADDED), tl.float32)
    for at in range(split * chunk, end, BLOCK_N):
        acc, m, l = _step(acc, m, l, q, K, V, at, end, n, d, k_l, v_l, D, True, SCALE)
    seen = (row < real) & (l > 0)
    out = tl.where(seen[:, None], acc / tl.where(seen, l, 1.0)[:, None], 0.0)
    lse = tl.where(seen, (m + tl.log2(tl.where(seen, l, 1.0))) * LN_2, float("-inf"))
    clips = tl.num_programs(2) // SPLITS
    to = ((split.to(tl.int64) * clips + b) * heads + h) * n_text + row
    tl.store(
        Out + to[:, None] * D + d[None, :], out, mask=(row < n_text)[:, None] & (d[None, :] < D)
    )
    tl.store(Lse + to, lse, mask=row < n_text)
