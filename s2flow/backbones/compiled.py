"""torch.compile with the routing in place: the transformer is one graph per latent shape.

Every routed attention is one opaque node of it (`routing.py`), so that step, windows, plan and layer
are not compiled in, and prompts of other lengths use the same graph: LR and HR make two.
"""

import torch

from s2flow.backbones.base import Backbone

GRAPHS = 64  # sizes, batches and kinds of padding that a sweep may go through


def compile_backbone(backbone: Backbone, compiler: str = "inductor") -> None:
    """Compile a loaded backbone's transformers in place; compiler: a backend of torch.compile."""
    limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    torch._dynamo.config.recompile_limit = limit
    for transformer in (backbone.transformer, getattr(backbone, "transformer_2", None)):
        if transformer is not None:
            transformer.compile(backend=compiler, fullgraph=True, dynamic=False)
