"""flash-attn-4's block sparsity: an optional extra (`pip install -e .[fa4]`), Hopper and Blackwell.

A block is a brick, so its volume must be what the kernel tiles: 64 or 128 tokens on compute
capability 9, a multiple of 256 on 10. Elsewhere it is refused: on sm80 the kernel takes the lists,
returns dense attention and says nothing.

Pairs of one window go together as a batch and share one list. All blocks are given as full ones, in
ascending order: the kernel walks a list from its end and cuts the first block it meets at the length of
the keys, so that text needs no mask. Ragged grids would need one, and are left to other backends.

Not yet run on a GPU. 4.0.0b36 (https://pypi.org/project/flash-attn-4) was read; its own
cross-compilation takes these lists for sm_90 and refuses what `unsupported` refuses.
"""

import importlib.metadata
import math

import torch
from torch import Tensor

from s2flow.attention.batches import (
    attend_text,
    pairs_by_window,
    parts,
    results,
    window_blocks,
)
from s2flow.attention.problem import Problem
from s2flow.grid import Box

IN_BRICKS = True
AUTO = ("cuda",)
RAGGED = False


def unusable(problem: Problem) -> str | None:
    """Why it cannot be used for such a problem, or None."""
    if problem.device.type != "cuda":
        return f"flash-attn-4 runs on CUDA, not on {problem.device.type}"
    try:
        importlib.metadata.version("flash-attn-4")
    except importlib.metadata.PackageNotFoundError:
        return "flash-attn-4 is not installed (pip install -e .[fa4])"
    major = torch.cuda.get_device_capability(problem.device)[0]
    return unsupported(major, problem.dtype, problem.head_dim, problem.volume)


def unsupported(capability: int, dtype: torch.dtype, d: int, n: int) -> str | None:
    """Why its kernel has no block-sparse form for such a device, q and bricks of n tokens, or None."""
    if capability not in (9, 10):
        return f"flash-attn-4 is block-sparse on compute capability 9 and 10, not on {capability}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"flash-attn-4 takes float16 or bfloat16, not {dtype}"
    if d % 8 or not 8 <= d <= 128:
        return f"flash-attn-4 takes head_dim 8, 16 ... 128 here, not {d}"
    if capability == 9 and n not in (64, 128):
        return f"flash-attn-4 takes blocks of 64 or 128 tokens here, and bricks have {n}"
    if capability == 10 and n % 256:
        return f"flash-attn-4 takes blocks of 256, 512 ... tokens here, and bricks have {n}"
    return None


def block_list(g: Box, box: Box, n_text: int, n: int, device: torch.device | str) -> Tensor:
    """(1, 1, bricks, blocks in a row) int32: each row's window and then the blocks of text."""
    bricks = math.prod(g)
    texts = torch.arange(bricks, bricks + math.ceil(n_text / n), dtype=torch.int32, device=device)
    return torch.cat([window_blocks(g, box, device), texts.expand(bricks, -1)], 1)[None, None]


def arguments(blocks: Tensor, n: int) -> dict[str, Tensor | tuple[int, int]]:
    """Of BlockSparseTensorsTorch: `blocks` as full blocks, and no others."""
    rows = blocks.shape[:3]
    none = {"mask_block_cnt": blocks.new_zeros(rows), "mask_block_idx": blocks.new_zeros(*rows, 1)}
    full = {"full_block_cnt": blocks.new_full(rows, blocks.shape[3]), "full_block_idx": blocks}
    return {**none, **full, "block_size": (n, n)}


def window_attention(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Tensor:
    """See `s2flow.attention`; inference only, on grids that the brick divides."""
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch  # an optional extra
    from flash_attn.cute.interface import flash_attn_func

    n_video, n = problem.n_video, problem.volume
    with torch.no_grad():
        out = results(q, problem)
        for clips, Q, K, V, O in parts(problem, q, k, v, out):
            attend_text(Q, K, V, n_video, O)
            for box, *pairs in pairs_by_window(problem, clips, Q):
                blocks = block_list(problem.grid, box, Q.shape[2] - n_video, n, q.device)
                lists = BlockSparseTensorsTorch(**arguments(blocks, n))
                # its layout is (batch, L, heads, d): each pair is a batch of one head
                qkv = (x[tuple(pairs)][:, :, None] for x in (Q[:, :, :n_video], K, V))
                rows = flash_attn_func(*qkv, block_sparse_tensors=lists)[0]
                O[(*pairs, slice(n_video))] = rows[:, :, 0]
    return out
