"""Observe or replace a diffusers transformer's self-attention, through the model's own call.

Wan's and HunyuanVideo's processors call a module-level `dispatch_attention_fn(q, k, v, ...)` after norm
and rotary embedding. Each self-attention layer's stock processor is wrapped so that this call knows its
layer; the call itself is routed once per module. With nothing to observe or replace, the stock function
runs on the stock arguments: capture is bitwise equal to the untouched model.

In joint attention (HunyuanVideo) the tokens are [video, text], and a batch's shorter prompts end in
padding. The adapter says with `text_of` how many text tokens of each clip are real, so that neither
observers nor replacers need a mask; where nothing is padded, the model's own mask, all true, is
dropped, since it would cost the flash kernel.
"""

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from s2flow.errors import UserError

Observer = Callable[[int, Tensor, Tensor], None]
Replacer = Callable[[int, Tensor, Tensor, Tensor], Tensor | None]

_inside: list[
    tuple["AttentionRouter", int]
] = []  # the self-attention layer being computed, if any


class AttentionRouter:
    """The self-attention layers of one transformer; q, k, v are handed out as (B, heads, L, d).

    twins: layers of further transformers that take its place at other noise levels, numbered alike.

    Raises at construction: RuntimeError if the module lacks `dispatch_attention_fn`, UserError for
    twins of another depth.
    """

    def __init__(
        self, module: ModuleType, layers: list[nn.Module], *twins: list[nn.Module]
    ) -> None:
        if not hasattr(module, "dispatch_attention_fn"):
            raise RuntimeError(
                f"{module.__name__} has no dispatch_attention_fn: this diffusers version moved its "
                "attention call; install diffusers>=0.42,<0.43"
            )
        if not hasattr(module, "_stock_dispatch"):
            module._stock_dispatch = module.dispatch_attention_fn
            module.dispatch_attention_fn = routed(module._stock_dispatch)
        self.layers = len(layers)
        self.text: tuple[int, ...] | None = None  # real text tokens per clip; None: no padding
        self.unmasked = False  # whether the model's mask is known to be all true
        self._observer: Observer | None = None
        self._replacer: Replacer | None = None
        depths = [len(numbered) for numbered in (layers, *twins)]
        if len(set(depths)) > 1:
            raise UserError(
                f"experts of {' and '.join(map(str, depths))} layers cannot share a plan; "
                "type a backbone.source whose experts are alike"
            )
        for numbered in (layers, *twins):
            for i, layer in enumerate(numbered):
                layer.set_processor(_LayerProcessor(layer.processor, self, i))

    @contextlib.contextmanager
    def observing(self, observer: Observer | None) -> Iterator[None]:
        """Call `observer(layer, q, k)` before every self-attention; None hides an outer observer."""
        before, self._observer = self._observer, observer
        try:
            yield
        finally:
            self._observer = before

    @contextlib.contextmanager
    def replacing(self, replacer: Replacer | None) -> Iterator[None]:
        """Use `replacer(layer, q, k, v)` for attention; where it returns None, the stock call runs."""
        before, self._replacer = self._replacer, replacer
        try:
            yield
        finally:
            self._replacer = before

    @contextlib.contextmanager
    def text_of(self, lengths: list[int], padded_to: int) -> Iterator[None]:
        """During this forward, clip i ends in lengths[i] text tokens, padded to so many."""
        before = self.text, self.unmasked
        whole = all(n == padded_to for n in lengths)
        self.text, self.unmasked = None if whole else tuple(lengths), whole
        try:
            yield
        finally:
            self.text, self.unmasked = before

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, stock: Callable[[], Any]) -> Any:
        """One self-attention in diffusers' layout (B, L, heads, d)."""
        if self._observer is not None:
            self._observer(layer, q.transpose(1, 2), k.transpose(1, 2))
        if self._replacer is not None:
            out = self._replacer(layer, *(x.transpose(1, 2) for x in (q, k, v)))
            if out is not None:
                return out.transpose(1, 2)
        return stock()


def routed(stock: Callable) -> Callable:
    """`stock(q, k, v, ...)`, in diffusers' layout, seen and replaced by the router of its layer."""

    def dispatch_attention_fn(query, key, value, *args, **kwargs):
        if not _inside:
            return stock(query, key, value, *args, **kwargs)
        router, layer = _inside[-1]
        return router.attend(
            layer, query, key, value, lambda: stock(query, key, value, *args, **kwargs)
        )

    return dispatch_attention_fn


class _LayerProcessor:
    """The stock processor of one layer, with the layer announced while it runs.

    diffusers filters keyword arguments by this signature: every name the stock one takes is here.
    """

    def __init__(self, stock: Any, router: AttentionRouter, layer: int) -> None:
        self.stock, self.router, self.layer = stock, router, layer

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,  # Wan's name
        image_rotary_emb: Any = None,  # HunyuanVideo's
    ) -> Tensor:
        rotary = image_rotary_emb if rotary_emb is None else rotary_emb
        mask = None if self.router.unmasked else attention_mask
        _inside.append((self.router, self.layer))
        try:
            return self.stock(attn, hidden_states, encoder_hidden_states, mask, rotary)
        finally:
            _inside.pop()
