"""diffusers' cache hooks (First Block Cache, Pyramid Attention Broadcast) in our loop.

A cache that the user enabled on a transformer skips layers that change little between steps. It must
know which pass of guidance runs and at which timestep, and must forget what it kept when another
flow begins: LR and HR latents have other shapes. Models without a cache are left alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def told(pipeline: Any, model: Any, which: str, sigma: float) -> Iterator[None]:
    """Within, the model runs the pass "cond" or "uncond" at this noise level."""
    if not getattr(model, "is_cache_enabled", False):
        yield
        return
    pipeline._current_timestep = 1000 * sigma
    try:
        with model.cache_context(which):
            yield
    finally:
        pipeline._current_timestep = None


def forget(pipeline: Any) -> None:
    """A new flow begins: its first step computes every layer."""
    for name in ("transformer", "transformer_2"):
        model = getattr(pipeline, name, None)
        if getattr(model, "is_cache_enabled", False):
            model._reset_stateful_cache()
