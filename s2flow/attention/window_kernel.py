"""The Triton kernels behind `triton.py`: softmax attention of a tile of queries over runs of keys.

    s = q k^T / sqrt(d) log2(e)          m = max s,   p = 2^(s - m),   l = sum p,   acc = sum p v
    out = acc / l                                          kept online, tile of keys by tile of keys

Tokens are in brick order (`order.py`): a window is w_t w_h runs of w_w bricks, each run contiguous. On
full grids all tiles of all runs are one loop, so that loads stay in flight from run to run; on ragged
grids runs differ in length and are loops of their own. Masks are written only where a tile may leave
its run: not at all where a brick is a whole number of tiles.

Windows are read from a table: another window is another number, never another kernel.
Online softmax: Dao et al. 2022, Milakov and Gimelshein 2018.
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
GRID = ("g_t", "g_h", "g_w", "n_video", "n_text", "chunk")  # say nothing about alignment


@triton.jit
def dot(a, b, acc):
    """a b + acc in float32: no TF32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x in another type, to the nearest, where the interpreter would cut."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def _tile(x, stride, at, there, n, d, D, MASKED):
    """Tokens at ... at + len(n) - 1 of x; where MASKED, those that are there."""
    places = x + tl.cast(at, tl.int64) * stride + (n[:, None] * stride + d[None, :])
    if MASKED:
        tile = tl.load(places, mask=there[:, None] & (d[None, :] < D), other=0.0)
    elif d.shape[0] == D:
        tile = tl.load(places)
    else:
        tile = tl.load(places, mask=d[None, :] < D, other=0.0)
    return tile


@triton.jit
def _step(acc, m, l, q, K, V, at, end, n, d, stride_k, stride_v, D, MASKED, SCALE):
    """One tile of keys; where MASKED, those before `end`."""
    there = at + n < end
    k = _tile(K, stride_k, at, there, n, d, D, MASKED)
    s = dot(q, tl.trans(k), tl.zeros((q.shape[0], k.shape[0]), tl.float32))
    if MASKED:
        s = tl.where(there[None, :], s, float("-inf"))
    top = tl.maximum(m, tl.max(s, 1) * SCALE)
    p = tl.exp2(s * SCALE - top[:, None])
    alpha = tl.exp2(m - top)
    l = l * alpha + tl.sum(p, 1)
    v = _tile(V, stride_v, at, there, n, d, D, MASKED)  # 0 times what stands behind may be NaN
    acc = dot(rounded(p, v.dtype), v, acc * alpha[:, None])
    return acc, top, l


@triton.jit
def _run(acc, m, l, q, K, V, first, end, n, d, stride_k, stride_v, D, SCALE):
    """All tiles of the keys from `first` to before `end`."""
    for at in range(first, end, n.shape[0]):
        acc, m, l = _step(acc, m, l, q, K, V, at, end, n, d, stride_k, stride_v, D, True, SCALE)
    return acc, m, l


@triton.jit
def _start(i, w, g):
    """First brick of the window of brick i along one axis, shifted inward."""
    return tl.minimum(tl.maximum(i - w // 2, 0), g - w)


@triton.jit
def _nothing(i, d):
    """(acc, m, l) before any key."""
    zero = tl.zeros((i.shape[0],), tl.float32)
    return tl.zeros((i.shape[0], d.shape[0]), tl.float32), zero + float("-inf"), zero


@triton.jit(do_not_specialize=GRID)
def windowed(
    Q, K, V, Out, windows, offsets,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, o_b, o_h, o_l,
    g_t, g_h, g_w, n_video,
    VOLUME: tl.constexpr, RAGGED: tl.constexpr, TEXT: tl.constexpr,
    D: tl.constexpr, D_PADDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Video queries: program = (tile of one brick's queries, head, clip).

    windows: (B, heads, 4) int32, the sides in bricks and the clip's real text keys; offsets:
    (bricks + 1) int32, read where RAGGED.
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
    run = _start(brick // (g_h * g_w), w_t, g_t) * g_h + _start(brick // g_w % g_h, w_h, g_h)
    run = run * g_w + _start(brick % g_w, w_w, g_w)  # first brick of the first run
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
    acc, m, l = _nothing(i, d)
    if RAGGED:
        for r in range(w_t * w_h):
            here = offsets + run + (r // w_h * g_h + r % w_h) * g_w
            ends = (tl.load(here), tl.load(here + w_w))
            acc, m, l = _run(acc, m, l, q, K, V, *ends, n, d, k_l, v_l, D, SCALE)
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
        acc, m, l = _run(acc, m, l, q, K, V, n_video, end, n, d, k_l, v_l, D, SCALE)
    o_at = Out + b * o_b + h * o_h + first.to(tl.int64) * o_l + (i[:, None] * o_l + d[None, :])
    tl.store(o_at, rounded(acc / l[:, None], Out.dtype.element_ty), mask=mine)


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
    first = split * chunk
    acc, m, l = _run(*_nothing(i, d), q, K, V, first, end, n, d, k_l, v_l, D, SCALE)
    seen = (row < real) & (l > 0)
    out = tl.where(seen[:, None], acc / tl.where(seen, l, 1.0)[:, None], 0.0)
    lse = tl.where(seen, (m + tl.log2(tl.where(seen, l, 1.0))) * LN_2, float("-inf"))
    clips, written = tl.num_programs(2) // SPLITS, row < n_text
    to = ((split.to(tl.int64) * clips + b) * heads + h) * n_text + row
    tl.store(Out + to[:, None] * D + d[None, :], out, mask=written[:, None] & (d[None, :] < D))
    tl.store(Lse + to, lse, mask=written)
