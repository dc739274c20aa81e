"""Window attention by our own Triton kernel (`window_kernel.py`): the default on an NVIDIA GPU.

What changes from head to head, layer to layer and step to step is a table of B x heads x 4 integers
that the kernel reads: nothing is built or compiled anew, and the host never waits. Video queries and
text queries are two launches; q, k, v and out keep whatever strides they have.

Memory beside out: for text the chunks' partial results, one or two percent of out at the paper's size.
Tile sizes are tuned once per (head_dim, dtype, brick volume); small problems and the interpreter take
the first configuration. Not yet run on a GPU.
"""

import importlib.util
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s2flow.attention.order import brick_offsets, to_device
from s2flow.attention.problem import Problem
from s2flow.errors import UserError

IN_BRICKS = True
AUTO = ("cuda",)
HEAD_DIMS = (16, 32, 64, 96, 128)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
TUNED_FROM = 2**14  # video tokens; below, launches are too short to tell configurations apart
KEYS_A_SPLIT = 2**15  # of text queries


class Config(NamedTuple):
    """Queries and keys of a tile, warps, and tiles of keys in flight."""

    BLOCK_M: int
    BLOCK_N: int
    num_warps: int
    num_stages: int


def configs(
    d: int, dtype: torch.dtype, volume: int, ragged: bool = False, chip: int = 80
) -> list[Config]:
    """Those worth trying on sm_<chip>; `experiments/compile_kernels.py` shows that none spills."""
    masked = ragged or d & (d - 1)  # masks take registers
    if dtype == torch.float32:  # no tensor cores in full precision
        usual = [Config(32, 16, 4, 2)] + [Config(32, 16, 8, 2)] * (not ragged)
    elif not masked:
        usual = [Config(128, 64, 8, 3), Config(64, 64, 4, 3), Config(64, 64, 4, 2)]
        usual += [Config(128, 128, 8, 2)] * (chip == 90)
    else:
        usual = [Config(128, 64, 8, 3), Config(64, 64, 4, 3)] if chip == 90 else []
        usual += [Config(128, 32, 8, 3)] * (chip >= 90) + [Config(64, 32, 4, 3)]
    rows = max(_power_of_2(volume), 16)
    fitting = [c for c in usual if rows >= c.BLOCK_M]
    return fitting or [Config(rows, usual[0].BLOCK_N, 4, 2)]


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which was chosen when they were first imported."""
    from triton.runtime.interpreter import InterpretedFunction  # needs the package triton

    from s2flow.attention import window_kernel

    return isinstance(window_kernel.windowed, InterpretedFunction)


def unusable(problem: Problem) -> str | None:
    """Why the kernel cannot be used for such a problem, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (pip install triton, on Linux)"
    device, on_gpu = problem.device, problem.device.type == "cuda"
    if not on_gpu and not interpreted():
        return "no CUDA device; TRITON_INTERPRET=1 runs it slowly on a CPU"
    if on_gpu and interpreted():
        return "TRITON_INTERPRET is set, so that kernels run on the CPU; unset it"
    if on_gpu and torch.cuda.get_device_capability(device) < (8, 0):
        capability = "{}.{}".format(*torch.cuda.get_device_capability(device))
        return f"compute capability {capability} is below 8.0"
    if problem.head_dim not in HEAD_DIMS:
        return f"head_dim {problem.head_dim} is none of {', '.join(map(str, HEAD_DIMS))}"
    if problem.dtype not in DTYPES:
        return f"{str(problem.dtype).removeprefix('torch.')} is none of float16, bfloat16, float32"
    return None


def window_attention(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Tensor:
    """See `s2flow.attention`; tokens in brick order. Raises UserError if a gradient is wanted."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise UserError("attention=triton has no backward pass; type attention=tiled")
    # 128 tokens, a tile, must be less than 2^31 elements apart, as in any usual layout
    fits = [x.stride(-1) == 1 and x.stride(2) < 2**24 for x in (q, k, v)]
    q, k, v = (x if fit else x.contiguous() for x, fit in zip((q, k, v), fits, strict=True))
    B, heads = q.shape[:2]
    real = torch.tensor(problem.text or [problem.n_text] * B, dtype=torch.int32)
    table = torch.cat([problem.windows.int(), real[:, None, None].expand(B, heads, 1)], -1)
    table = to_device(table, q.device)
    out = torch.empty_like(q)
    with torch.cuda.device(q.device if q.is_cuda else -1):
        _video(q, k, v, out, table, problem)
        if problem.n_text:
            _text(q, k, v, out, table, problem.n_video)
    return out


def _strides(*tensors: Tensor) -> list[int]:
    return [s for x in tensors for s in x.stride()[:3]]


def _video(q, k, v, out, table, problem: Problem) -> None:
    from s2flow.attention import window_kernel  # needs the package triton

    B, heads, L, d = q.shape
    g, n_video, volume, ragged = problem.grid, problem.n_video, problem.volume, problem.ragged
    # of full grids offsets are not read: the table stands for them
    offsets = brick_offsets(problem.tokens, problem.brick, q.device) if ragged else table
    arguments = (q, k, v, out, table, offsets, *_strides(q, k, v, out), *g, n_video)
    fixed = {"VOLUME": volume, "RAGGED": ragged, "TEXT": n_video < L}
    fixed |= {"D": d, "D_PADDED": _power_of_2(d)}

    def tiles(config: Config) -> int:
        return math.prod(g) * math.ceil(volume / config.BLOCK_M)

    def launch(config: Config, most: int) -> None:
        grid = (min(tiles(config), most), heads, 1)
        window_kernel.windowed[grid](*arguments, **fixed, **config._asdict())

    chip = (8, 0) if q.device.type != "cuda" else torch.cuda.get_device_capability(q.device)
    known = configs(d, q.dtype, volume, ragged, 10 * chip[0] + chip[1])
    key, config = (q.device, d, q.dtype, volume, ragged), known[0]
    if n_video >= TUNED_FROM and q.is_cuda:
        if key not in _tuned:
            _tuned[key] = _fastest(launch, known, q.device, heads, out[:1, :, :1])
        config = _tuned[key]
    window_kernel.windowed[(tiles(config), heads, B)](*arguments, **fixed, **config._asdict())


_tuned: dict[tuple, Config] = {}


def _fastest(launch, known: list[Config], device, heads: int, written: Tensor) -> Config:
    """The quickest of some configurations, on queries that fill the GPU about eight times.

    written: what each launch writes again; a configuration that disagrees with the first is left out.
    """
    n = 8 * torch.cuda.get_device_properties(device).multi_processor_count
    seconds, truth = {}, None
    for config in known:
        rows = math.ceil(n / heads * known[0].BLOCK_M / config.BLOCK_M)  # as many for each
        ticks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        try:
            launch(config, rows)  # compiles
        except Exception as error:  # more shared memory than the chip has, for one
            last: Any = error
            continue
        now = written.float().clone()
        truth = truth if seconds else now
        if not (now - truth).norm() <= 0.02 * truth.norm():  # NaN is not
            continue
        for i, tick in enumerate(ticks):
            tick.record()
            if i < 3:
                launch(config, rows)
        ticks[-1].synchronize()
        seconds[config] = min(a.elapsed_time(b) for a, b in zip(ticks, ticks[1:], strict=False))
    if not seconds:
        raise last
    return min(seconds, key=seconds.get)


def _text(q, k, v, out, table, n_video: int) -> None:
    """The launch of text queries, and its chunks put together: dense over all real keys."""
    from s2flow.attention import window_kernel  # needs the package triton

    B, heads, L, d = q.shape
    n_text, splits = L - n_video, math.ceil(L / KEYS_A_SPLIT)
    config = configs(d, q.dtype, 64)[0]
    chunk = math.ceil(L / splits / config.BLOCK_N) * config.BLOCK_N
    parts = torch.empty(splits, B, heads, n_text, d, device=q.device, dtype=torch.float32)
    lse = torch.empty(parts.shape[:-1], device=q.device, dtype=torch.float32)
    window_kernel.of_text[(math.ceil(n_text / config.BLOCK_M), heads, B * splits)](
        *(q, k, v, parts, lse, table, *_strides(q, k, v), n_video, n_text, chunk),
        **{"D": d, "D_PADDED": _power_of_2(d), "SPLITS": splits, **config._asdict()},
    )
    total = lse.logsumexp(0)
    weights = (lse - total.nan_to_num(neginf=0.0)).exp()  # padding is -inf everywhere, and stays 0
    out[:, :, n_video:] = torch.einsum("sbhnd,sbhn->bhnd", parts, weights)
