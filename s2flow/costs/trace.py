"""Count FLOPs, bytes alive and bytes moved by running code on the meta device.

A dispatch mode sees every operation. Meta tensors have shapes and dtypes but no data, so that a forward
of 460,800 tokens takes a second on a CPU.

    flops    of every matrix product and convolution, a multiply-add as two; fused attention as
             4 Lq Lk d per head. Other operations (norms, gates, GELU) count as bytes only
    live     bytes of all storages alive (a Python reference keeps one alive, as on a GPU), and their
             peak. Fused attention allocates its output only, as a flash kernel does
    moved    bytes read and written in device memory by every operation: its inputs and outputs, once.
             A view moves nothing, an expanded tensor counts its storage, lookups read what they return.
             Only attention and RMS norm are fused, and no cache spans two operations, as in eager mode;
             torch.compile moves less of `rest`
"""

import contextlib
import math
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

LOOKUPS = ("embedding", "gather", "index", "index_select")  # read only the returned rows
OVERWRITES = ("copy_", "fill_", "zero_")  # write the first argument without reading it


@dataclass(frozen=True)
class Moved:
    """Bytes read and written in device memory, by kind of operation.

    weights: parameters; products: inputs and outputs of matrix products and convolutions; attention:
    q, k, v and output of self-attention; rest: all other operations.
    """

    weights: float = 0
    products: float = 0
    attention: float = 0
    rest: float = 0

    def __add__(self, other: "Moved") -> "Moved":
        return Moved(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> "Moved":
        return Moved(*(times * a for a in astuple(self)))

    def shared(self, k: int) -> "Moved":
        """Bytes of one of k ranks: it reads all weights, and has a k-th of the tokens."""
        return Moved(self.weights, self.products / k, self.attention / k, self.rest / k)

    @property
    def total(self) -> float:
        """Sum over all kinds."""
        return sum(astuple(self))


class Trace(TorchDispatchMode):
    """Counts all operations in a block; see the module. weights: counted separately in `moved`."""

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.flops = self.live = self.peak = 0
        self.bytes = {"weights": 0, "products": 0, "rest": 0}
        self._weights = {w.untyped_storage()._cdata for w in weights}
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        self._count_moved(func, _tensors((args, kwargs)), _tensors(out))
        if not any(r.alias_info for r in func._schema.returns):  # neither a view nor in place
            for t in _tensors(out):
                self._allocated(t.untyped_storage())
        return out

    @property
    def moved(self) -> Moved:
        """Bytes read and written so far; self-attention is not separated here."""
        return Moved(**self.bytes)

    def add_transient(self, extra: int) -> None:
        """Count `extra` bytes that were allocated for a moment on top of the live ones."""
        self.peak = max(self.peak, self.live + extra)

    def count(self, tensors: Iterable[Tensor], product: bool) -> None:
        """Count tensors as read or written once; an expanded tensor counts its storage."""
        for t in tensors:
            is_weight = t.untyped_storage()._cdata in self._weights
            size = min(t.numel() * t.element_size(), t.untyped_storage().nbytes())
            self.bytes["weights" if is_weight else "products" if product else "rest"] += size

    def _count_moved(self, func: Any, read: list[Tensor], written: list[Tensor]) -> None:
        name = func._overloadpacket.__name__
        if name.startswith(("empty", "new_empty")):
            return
        if not any(r.alias_info and r.alias_info.is_write for r in func._schema.returns):
            storages = {t.untyped_storage()._cdata for t in read}
            if any(t.untyped_storage()._cdata in storages for t in written):
                return  # a view, declared or not
        if name.endswith("_like"):
            read = []
        elif name in OVERWRITES:
            read = read[1:]
        elif name in LOOKUPS:
            read = [*read[1:], *written]
        self.count([*read, *written], func._overloadpacket in flop_registry)

    def _allocated(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


class _Fused(TorchFunctionMode):
    """Attention and RMS norm as one kernel each; on the meta device torch would decompose them."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            q, k, v = args[:3] if len(args) > 2 else (kwargs[n] for n in ("query", "key", "value"))
            self.trace.flops += attention_flops(q, k)
            self.trace.count([q, k, v, q], product=True)
            return torch.empty_like(q)
        if func in (F.rms_norm, torch.rms_norm):
            self.trace.count([*_tensors((args, kwargs)), args[0]], product=False)
            return torch.empty_like(args[0])
        return func(*args, **kwargs)


@contextlib.contextmanager
def tracing(fused: bool = True, weights: nn.Module | None = None) -> Iterator[Trace]:
    """A `Trace` around a block; fused=False lets real attention run, as on a CPU."""
    trace = Trace(() if weights is None else weights.parameters())
    with torch.no_grad(), trace, _Fused(trace) if fused else contextlib.nullcontext():
        yield trace


def attention_flops(q: Tensor, k: Tensor) -> int:
    """4 Lq Lk d of every head: scores and weighted sum. q, k: (B, heads, L, d)."""
    return 4 * math.prod(q.shape) * k.shape[-2]
