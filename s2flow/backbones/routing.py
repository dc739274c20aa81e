"""Observe or replace a diffusers transformer's self-attention, through the model's own call.

Wan's and HunyuanVideo's processors call a module-level `dispatch_attention_fn(q, k, v, ...)` after norm
and rotary embedding. Each self-attention layer's stock processor is wrapped so that this call knows its
layer. With nothing to observe or replace, the stock function runs on the stock arguments.

In joint attention (HunyuanVideo) the tokens are [video, text], and a batch's shorter prompts end in
padding. `text_of` says how many text tokens of each clip are real, so that nobody needs a mask; where
nothing is padded, the model's own mask is dropped, since it would cost the flash kernel.

Under torch.compile each routed call is one opaque node, `s2flow::attend`, that is told its layer in a
tensor: no layer or plan is compiled in. Under context parallelism (`ulysses.py`) observers and
replacers are given whole heads, those in `heads`, over all tokens.
"""

import functools
import itertools
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from s2flow.backbones.ordering import TokenOrder
from s2flow.backbones.swap import swapped
from s2flow.backbones.ulysses import Heads, Ulysses
from s2flow.errors import UserError

Observer = Callable[[int, Tensor, Tensor], None]
Replacer = Callable[[int, Tensor, Tensor, Tensor], Tensor | None]
Work = Callable[[int], list[float]]  # of a layer: what each of its heads costs
Stock = Callable[..., Tensor]  # the model's own attention of q, k, v (B, L, heads, d)
Context = AbstractContextManager[None]

_inside: list["_LayerProcessor"] = []  # of the self-attention being computed, if any
_routers: weakref.WeakValueDictionary[int, "AttentionRouter"] = weakref.WeakValueDictionary()


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
        depths = [len(numbered) for numbered in (layers, *twins)]
        if len(set(depths)) > 1:
            raise UserError(
                f"experts of {' and '.join(map(str, depths))} layers cannot share a plan; "
                "type a backbone.source whose experts are alike"
            )
        self.layers = len(layers)
        self.text: tuple[int, ...] | None = None  # real text tokens per clip; None: no padding
        self.unmasked = False  # whether the model's mask is known to be all true
        self.ranks: Ulysses | None = None  # those who share each video's tokens
        self.heads: list[int] | None = None  # the model's heads that are handed out; None: all
        self.order: TokenOrder | None = None  # of the video tokens, where it can be changed
        self._stock = module._stock_dispatch
        self._observer: Observer | None = None
        self._replacer: Replacer | None = None
        self._work: Work | None = None
        self._dealt: Heads = []
        self._temperature = 1.0
        self._before = [(layer, layer.processor) for layer in itertools.chain(layers, *twins)]
        self._processors: list[_LayerProcessor] = []
        for number, (layer, own) in enumerate(self._before):
            stock = own.stock if isinstance(own, _LayerProcessor) else own
            self._processors.append(_LayerProcessor(stock, self, number % self.layers, number))
            layer.set_processor(self._processors[-1])
        self.handle = id(self)
        _routers[self.handle] = self

    def remove(self) -> None:
        """Give every layer back the processor that it had; this router is of no use after that."""
        for layer, own in self._before:
            layer.set_processor(own)
        if self.order is not None:
            self.order.remove()

    @property
    def ordered(self) -> bool:
        """Whether video tokens are handed out in brick order, not row-major."""
        return self.order is not None and self.order.index is not None

    def observing(self, observer: Observer | None) -> Context:
        """Call `observer(layer, q, k)` before every self-attention; None hides an outer observer."""
        return swapped(self, _observer=observer)

    def replacing(self, replacer: Replacer | None, work: Work | None = None) -> Context:
        """Use `replacer(layer, q, k, v)` for attention; where it returns None, the stock call runs.

        work(layer): the cost of each head, by which ranks share them; None: all alike.
        """
        return swapped(self, _replacer=replacer, _work=work)

    def tempered(self, factor: float) -> Context:
        """Multiply every attention logit by `factor`, in the stock call and in replacers alike."""
        return swapped(self, _temperature=factor)

    def text_of(self, lengths: list[int], padded_to: int) -> Context:
        """During this forward, clip i ends in lengths[i] text tokens, padded to so many."""
        whole = all(n == padded_to for n in lengths)
        return swapped(self, text=None if whole else tuple(lengths), unmasked=whole)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, stock: Stock) -> Tensor:
        """One self-attention in diffusers' layout (B, L, heads, d)."""
        if self._temperature != 1.0:
            q = q * self._temperature
        if self._observer is not None:
            self._observer(layer, q.transpose(1, 2), k.transpose(1, 2))
        if self._replacer is not None:
            out = self._replacer(layer, *(x.transpose(1, 2) for x in (q, k, v)))
            if out is not None:
                return out.transpose(1, 2)
        return stock(q, k, v)

    def compute(self, layer: int, q: Tensor, k: Tensor, v: Tensor, stock: Stock) -> Tensor:
        """`attend`; for one of several ranks, its heads over all tokens, from and to its tokens."""
        if self.ranks is None:
            return self.attend(layer, q, k, v, stock)
        heads = self._dealt = self.ranks.deal(q.shape[2], self._work and self._work(layer))
        with swapped(self, heads=heads[self.ranks.rank]):
            return self.ranks.attend(q, k, v, heads, lambda *qkv: self.attend(layer, *qkv, stock))

    def all_heads(self, x: Tensor) -> Tensor:
        """What an observer found, (B, heads, ...), of all heads; to be called inside the observer."""
        if self.ranks is None:
            return x
        return self.ranks.gather_heads(x, 1, self._dealt)

    def _check(self, parallel_config: Any) -> None:
        if parallel_config is not None and (self._observer or self._replacer):
            raise UserError(
                "the transformer's own context parallelism cannot carry windows: it does not say "
                "which heads or keys a rank holds, and a ring never has a whole window; leave "
                "enable_parallelism out and type context_parallel=2"
            )


def routed(stock: Callable) -> Callable:
    """`stock(q, k, v, ...)`, in diffusers' layout, seen and replaced by the router of its layer."""

    def dispatch_attention_fn(query, key, value, *args, **kwargs):
        if not _inside:
            return stock(query, key, value, *args, **kwargs)
        at = _inside[-1]
        if torch.compiler.is_compiling():
            ranks, mask = at.router.ranks, kwargs.get("attn_mask")
            tokens = 0 if ranks is None else ranks.tokens
            return attend(query, key, value, mask, at.number, at.router.handle, tokens)
        at.router._check(kwargs.get("parallel_config"))
        return at.router.compute(
            at.layer, query, key, value, lambda q, k, v: stock(q, k, v, *args, **kwargs)
        )

    return dispatch_attention_fn


@torch.library.custom_op("s2flow::attend", mutates_args=())
def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, number: Tensor, handle: int, tokens: int
) -> Tensor:
    """A routed self-attention as one node of a compiled graph; number: 0-dim, on the CPU."""
    router = _routers[handle]
    if router.ranks is not None:  # a graph leaves what it sets in Python until it has run
        router.ranks.tokens = tokens
    own = router._processors[int(number)]
    router._check(own._parallel_config)
    stock = functools.partial(router._stock, attn_mask=mask, backend=own._attention_backend)
    out = router.compute(own.layer, q, k, v, stock)
    return out.clone(memory_format=torch.contiguous_format)  # never one of the inputs


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask, number: Tensor, handle: int, tokens: int) -> Tensor:
    return q.new_empty(q.shape)


def _of_stock(name: str) -> property:
    """What diffusers writes on a processor (`set_attention_backend`), written on the stock one."""
    return property(
        lambda self: getattr(self.stock, name),
        lambda self, value: setattr(self.stock, name, value),
    )


class _LayerProcessor:
    """The stock processor of one layer, with the layer announced while it runs.

    diffusers filters keyword arguments by this signature: every name the stock one takes is here.
    """

    _attention_backend, _parallel_config = map(
        _of_stock, ("_attention_backend", "_parallel_config")
    )

    def __init__(self, stock: Any, router: AttentionRouter, layer: int, number: int) -> None:
        self.stock, self.router, self.layer = stock, router, layer
        # its place among the router's, for compiled graphs: to them an int would be a constant
        self.number = torch.tensor(number)

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
        if self.router.ranks is not None:
            rotary = self.router.ranks.cut_rotary(rotary)
        mask = None if self.router.unmasked else attention_mask
        _inside.append(self)
        try:
            return self.stock(attn, hidden_states, encoder_hidden_states, mask, rotary)
        finally:
            _inside.pop()
