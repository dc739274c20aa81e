"""FlexAttention (torch.nn.attention.flex_attention, PyTorch 2.11 to 2.13) over computed block lists.

A block is a brick, a (clip, head) pair a row of the batch, and all pairs of one window share one list.
Queries, keys and values are laid out in whole blocks: bricks, then text, each padded to whole blocks.

    full blocks      window bricks of grids that the brick divides: no mask is evaluated
    partial blocks   text, and all bricks of a ragged grid: place x of n belongs to block j = x // n,
                     a brick of min(T - b_t j_t, b_t) ... tokens; x is real if x mod n is one of them

Always compiled: flex that is not compiled ignores block lists and returns dense attention without a
word. `fullgraph=True` turns every silent way back to it into an error. Sizes are dynamic: no window,
plan, number of heads, grid or text length compiles anew; what does is the dtype, head_dim, volume of a
brick, and one pair against several.

On CUDA blocks must divide into tiles of 16 or more; not yet run on a GPU. On a CPU (x86 with AVX2
and a C++ compiler) it takes ten seconds a graph to compile and serves to check the lists; it does not
compile if a mask reads a table of dynamic size (PyTorch 2.13), so real places are computed.
"""

import functools
import importlib.util
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from s2flow.attention.batches import (
    attend_text,
    pairs_by_window,
    parts,
    results,
    window_blocks,
)
from s2flow.attention.order import brick_offsets
from s2flow.attention.problem import Problem
from s2flow.grid import Box

IN_BRICKS = True
AUTO = ("cuda",)  # on a CPU only by name: it would compile for longer than `tiled` computes
GRAPHS = 64  # recompile limit; beyond it an error, never eager flex
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def tile(n: int) -> int:
    """The largest power of two, up to 128, that divides a block of n tokens."""
    return min(n & -n, 128)


def unusable(problem: Problem) -> str | None:
    """Why it cannot be used for such a problem, or None."""
    n, d, device = problem.volume, problem.head_dim, problem.device.type
    if problem.dtype not in DTYPES:
        return f"FlexAttention takes float32, float16 or bfloat16, not {problem.dtype}"
    if device == "cpu":
        from torch._inductor.kernel.flex.flex_cpu import check_cpu_supported  # three seconds

        return None if check_cpu_supported() else "FlexAttention on a CPU needs x86 with AVX2"
    if device != "cuda":
        return f"FlexAttention was never tried on {device}"
    if not importlib.util.find_spec("triton"):
        return "FlexAttention on CUDA needs Triton, which is not installed"
    if d < 16:
        return f"FlexAttention on CUDA needs head_dim 16 or more, not {d}"
    if tile(n) < 16:
        return f"FlexAttention's tiles of 16 tokens and more do not divide bricks of {n}"
    return None


def _attend(q, k, v, full, n_full, part, n_part, grid):
    """q (P, Q, n, d), k and v (P, K, n, d), lists (1, 1, Q, .), grid (10,) -> like q."""
    n = q.shape[2]

    def real(b: Tensor, h: Tensor, q_idx: Tensor, x: Tensor) -> Tensor:
        T, H, W, b_t, b_h, b_w, g_h, g_w, bricks, end = (grid[i] for i in range(10))
        j = x // n
        size = (
            torch.minimum(T - j // (g_h * g_w) * b_t, b_t)
            * torch.minimum(H - j // g_w % g_h * b_h, b_h)
            * torch.minimum(W - j % g_w * b_w, b_w)
        )
        return torch.where(j < bricks, x % n < size, x < end)

    Q, K, V = (x.flatten(1, 2)[:, None] for x in (q, k, v))
    mask = BlockMask.from_kv_blocks(
        *(n_part, part, n_full, full),
        BLOCK_SIZE=n,
        mask_mod=real,
        seq_lengths=(Q.shape[2], K.shape[2]),
        compute_q_blocks=False,
    )
    options = {"FORCE_USE_FLEX_ATTENTION": True}
    if n % 128:
        options |= {"BLOCK_M": tile(n), "BLOCK_N": tile(n)}
    return flex_attention(Q, K, V, block_mask=mask, kernel_options=options).view(q.shape)


@functools.cache
def _compiled():
    return torch.compile(_attend, dynamic=True, fullgraph=True)


def window_attention(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Tensor:
    """See `s2flow.attention`; inference only."""
    n_video, n, g = problem.n_video, problem.volume, problem.grid
    tokens, brick, bricks = problem.tokens, problem.brick, math.prod(g)
    places = real_places(tokens, brick, q.device) if problem.ragged else None
    with torch.inference_mode(False), torch.no_grad():  # one mode, one graph
        out = results(q, problem)
        for clips, Q, K, V, O in parts(problem, q, k, v, out):
            attend_text(Q, K, V, n_video, O)
            numbers = (*tokens, *brick, *g[1:], bricks, bricks * n + Q.shape[2] - n_video)
            grid = torch.tensor(numbers, dtype=torch.int32).to(q.device)
            for box, *pairs in pairs_by_window(problem, clips, Q):
                whole = (x[tuple(pairs)] for x in (Q[..., :n_video, :], K, V))
                blocks = [in_blocks(x, n_video, places, bricks, n) for x in whole]
                lists = block_lists(g, box, blocks[1], problem.ragged)
                for x in blocks:
                    torch._dynamo.mark_static(x, (2, 3))
                limit = torch._dynamo.config.patch(recompile_limit=GRAPHS)
                # sizes may be equal by chance
                apart = torch.fx.experimental._config.patch(use_duck_shape=False)
                with limit, apart:
                    rows = _compiled()(*blocks, *lists, grid).flatten(1, 2)
                O[(*pairs, slice(n_video))] = rows if places is None else rows[:, places]
    return out


def real_places(tokens: Box, brick: Box, device: torch.device) -> Tensor:
    """Where the tokens, in brick order, stand when every brick has room for all that fit in it."""
    size, n = brick_offsets(tokens, brick, device).diff(), math.prod(brick)
    return (torch.arange(n, device=device) < size[:, None]).flatten().nonzero()[:, 0]


def in_blocks(x: Tensor, n_video: int, places: Tensor | None, bricks: int, n: int) -> Tensor:
    """Tokens in whole blocks, 0 where there are none: (P, L, d) -> (P, blocks, n, d)."""
    n_text = x.shape[1] - n_video
    if places is None and n_text % n == 0:
        return x.unflatten(1, (-1, n))
    blocks = x.new_zeros(len(x), (bricks + math.ceil(n_text / n)) * n, x.shape[2])
    blocks[:, slice(n_video) if places is None else places] = x[:, :n_video]
    blocks[:, bricks * n : bricks * n + n_text] = x[:, n_video:]
    return blocks.unflatten(1, (-1, n))


def block_lists(g: Box, box: Box, K: Tensor, ragged: bool) -> tuple[Tensor, ...]:
    """(full, their counts, partial, their counts): (1, 1, bricks, columns) and (1, 1, bricks) int32."""
    full, bricks = window_blocks(g, box, K.device), math.prod(g)
    part = torch.arange(bricks, K.shape[1], device=K.device, dtype=torch.int32)
    part = part.expand(bricks, -1)
    if ragged:
        full, part = full[:, :0], torch.cat([full, part], 1)
    lists = []
    for blocks in (full, part):
        width = K.shape[1] if K.device.type == "cpu" else blocks.shape[1]  # CPUs want the grid's
        width = max(width, 2)  # sizes of 0 and 1 would be compiled apart
        lists.append(F.pad(blocks, (0, width - blocks.shape[1]))[None, None])
        lists.append(blocks.new_full((1, 1, bricks), blocks.shape[1]))
    return tuple(lists)
