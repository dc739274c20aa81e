"""torch.compile with the routing in place: the transformer is one graph per latent shape.

Every routed attention is one opaque node of it (`routing.py`), so that step, windows, plan and layer
are not compiled in, and prompts of other lengths use the same graph: LR and HR make two.
"""

import torch

from s2flow.backbones.pipeline import PipelineBackbone

GRAPHS = 64  # sizes, batches and kinds of padding that a sweep may go through


def compile_backbone(backbone: PipelineBackbone, compiler: str = "inductor") -> None:
    """Compile a loaded backbone's transformers in place; compiler: a backend of torch.compile."""
    limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    torch._dynamo.config.recompile_limit = limit
    for transformer in backbone.experts:
        transformer.compile(backend=compiler, fullgraph=True, dynamic=False)
