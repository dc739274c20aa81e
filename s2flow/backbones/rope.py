"""Rotary positions beyond the grid that a model was trained on, per axis, for the HR stage alone.

Axis a of dimension d_a has frequencies w_j = theta^(-2j/d_a), j = 0 ... d_a/2 - 1, and turns q and k at
position i by the angles i w_j. The models count i = 0, 1, 2, ... whatever the resolution, and so meet
angles at HR that they never saw. With s_a the ratio of the HR and LR token grids on that axis:

    none         i w_j                                            as the model does
    interpolate  (i / s_a) w_j                                    the LR range, more densely
    ntk          i w_j', theta' = theta s_a^(d_a / (d_a - 2))     w_0 stays, the last is w / s_a

Time has s = 1. Where no axis changes, nothing is touched, so that scale 1 is the stock model, bitwise.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from s2flow.backbones.swap import swapped

WAN_THETA = 10000.0  # its module does not keep it
Scale = tuple[float, float, float]


def table(
    dim: int, n: int, theta: float, mode: str, scale: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(cos, sin) of one axis for n positions: two of (n, dim) float32, computed in `dtype`."""
    positions = torch.arange(n, dtype=dtype)
    if mode == "interpolate":
        positions = positions / scale
    if mode == "ntk" and dim > 2:  # with dim 2 there is only w_0
        theta = theta * scale ** (dim / (dim - 2))
    from diffusers.models.embeddings import get_1d_rotary_pos_embed  # takes seconds: only here

    return get_1d_rotary_pos_embed(dim, positions, theta, use_real=True, freqs_dtype=dtype)


@contextlib.contextmanager
def scaled(ropes: list[nn.Module], mode: str, scale: Scale) -> Iterator[None]:
    """Within, these position modules of diffusers work at `scale` = HR / LR tokens per axis.

    Raises TypeError for a module that is neither Wan's (tables) nor HunyuanVideo's (computed).
    """
    with contextlib.ExitStack() as stack:
        for rope in ropes if mode != "none" and set(scale) != {1} else ():
            changed = (_wan if hasattr(rope, "freqs_cos") else _hunyuan)(rope, mode, scale)
            stack.enter_context(swapped(rope, **changed))
        yield


def _wan(rope: nn.Module, mode: str, scale: Scale) -> dict[str, Tensor]:
    """Other tables of the same shape: what slices, splits or shards them does so as before."""
    dims, n = (rope.t_dim, rope.h_dim, rope.w_dim), len(rope.freqs_cos)
    axes = [
        table(d, n, WAN_THETA, mode, s, torch.float64) for d, s in zip(dims, scale, strict=True)
    ]
    cos, sin = (torch.cat(x, dim=1) for x in zip(*axes, strict=True))
    return {"freqs_cos": cos.to(rope.freqs_cos), "freqs_sin": sin.to(rope.freqs_sin)}


def _hunyuan(rope: nn.Module, mode: str, scale: Scale) -> dict[str, Callable]:
    """Another `forward`, since the stock one computes its whole positions anew every time."""
    if not hasattr(rope, "rope_dim"):
        raise TypeError(f"{type(rope).__name__} has neither freqs_cos nor rope_dim")

    def forward(latent: Tensor) -> tuple[Tensor, Tensor]:
        patch = (rope.patch_size_t, rope.patch_size, rope.patch_size)
        grid = [n // p for n, p in zip(latent.shape[2:], patch, strict=True)]
        cos, sin = [], []
        for axis, (d, n, s) in enumerate(zip(rope.rope_dim, grid, scale, strict=True)):
            place = [n if a == axis else 1 for a in range(3)]
            both = table(d, n, rope.theta, mode, s, torch.float32)
            for out, x in zip((cos, sin), both, strict=True):
                out.append(x.to(latent.device).view(*place, d).expand(*grid, d))
        return torch.cat(cos, -1).flatten(0, 2), torch.cat(sin, -1).flatten(0, 2)

    return {"forward": forward}
