"""Video tokens in brick order for whole forwards: permuted when they are made, back at the end.

Attention kernels want the tokens of a brick side by side (`attention.order`), and nothing else in a
transformer cares: between patch embedding and output projection every layer treats tokens alike, but
for the rotary tables, which are permuted with them. Text is never touched. Three hooks do it:

    patch_embedding (B, D, T, H, W) or x_embedder (B, L, D)      x -> x in brick order
    rope (1, L, 1, d) or (L, d), cos and sin                     likewise
    proj_out (B, L, D)                                           back

They are always there and do nothing outside `TokenOrder.of`, so that compiled graphs see them.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from s2flow.attention.order import brick_order
from s2flow.backbones.swap import swapped
from s2flow.grid import Box


class TokenOrder:
    """The order of video tokens inside some transformers of one backbone."""

    def __init__(self, *transformers: nn.Module) -> None:
        self.index: tuple[Tensor, Tensor] | None = None  # (order, inverse); None: row-major
        self._hooks = []
        for model in transformers:
            entry = getattr(model, "x_embedder", None) or model.patch_embedding
            hooks = (entry, self._enter), (model.rope, self._rotary), (model.proj_out, self._leave)
            self._hooks += [module.register_forward_hook(hook) for module, hook in hooks]

    def remove(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def of(self, tokens: Box, brick: Box, device: str) -> AbstractContextManager[None]:
        """Within, tokens are in the brick order of this grid."""
        return swapped(self, index=brick_order(tokens, brick, torch.device(device)))

    def _enter(self, module: nn.Module, args: tuple, x: Tensor) -> Tensor | None:
        if self.index is None:
            return None
        if x.ndim == 3:
            return x.index_select(1, self.index[0])
        return x.flatten(2).index_select(2, self.index[0]).view(x.shape)

    def _rotary(self, module: nn.Module, args: tuple, tables: tuple) -> tuple | None:
        if self.index is None:
            return None
        return tuple(x.index_select(1 if x.ndim == 4 else 0, self.index[0]) for x in tables)

    def _leave(self, module: nn.Module, args: tuple, x: Tensor) -> Tensor | None:
        return None if self.index is None else x.index_select(1, self.index[1])
