"""How a loaded backbone does its work: compiled, shared by several ranks. Pixels do not depend on it.

`compile`: the transformer is one graph, in which every routed attention is one opaque node
(`routing.py`): one graph per latent shape, LR and HR, whatever the step, windows and prompt.
`group`: the ranks that compute each video together (`ulysses.py`).
"""

from dataclasses import dataclass
from typing import Any

import torch

from s2flow.backbones.base import Backbone
from s2flow.backbones.ulysses import Ulysses, check_heads

GRAPHS = 64  # sizes, batches and kinds of text that a sweep may go through


@dataclass(frozen=True)
class Placement:
    """compile: whether to; group: a torch.distributed process group, None for one process."""

    compile: bool = False
    group: Any = None


def place(backbone: Backbone, placement: Placement, compiler: str = "inductor") -> None:
    """Set up a backbone that was just loaded; compiler: a backend of torch.compile.

    Raises UserError if its heads cannot be shared by the group's ranks.
    """
    transformer = backbone.transformer
    if placement.group is not None:
        ranks = Ulysses(placement.group)
        check_heads(transformer.config.num_attention_heads, ranks.k)
        blocks = getattr(transformer, "blocks", None) or transformer.transformer_blocks
        ranks.install(blocks[0], transformer.proj_out)
        backbone.router.ranks = ranks
    if placement.compile:
        limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
        torch._dynamo.config.recompile_limit = limit
        transformer.compile(backend=compiler, fullgraph=True, dynamic=False)
