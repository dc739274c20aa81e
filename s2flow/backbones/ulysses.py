"""Context parallelism by Ulysses: k ranks compute one video, and every head stays whole.

    blocks      each rank holds a k-th of the video tokens, (B, L/k, D), and all of the text
    attention   all-to-all: (B, L/k, H, d) -> (B, L, H/k, d), each head over all of its tokens on
                one rank, so that windows and coverage are those of one process; then back
    last layer  the ranks' tokens are gathered again, and every rank holds the whole velocity

Text (HunyuanVideo's [video, text]) is computed by every rank; in attention each takes its own heads
of it. The number of tokens is free, the last ranks have one less; k must divide the heads. Where heads
have windows of different volume they are dealt by volume, so that no rank waits long for another; plans
and coverage are always in the model's own order of heads. A ring cannot do this: no rank ever sees the
window of one head.
"""

import weakref
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from s2flow.errors import UserError

Heads = list[list[int]]  # which heads each rank takes


def deal_heads(work: list[float], k: int) -> Heads:
    """Equally many heads for each of k ranks, the largest first, each to whoever has least to do."""
    hands: Heads = [[] for _ in range(k)]
    load = [0.0] * k
    for head in sorted(range(len(work)), key=lambda m: -work[m]):
        free = [r for r in range(k) if len(hands[r]) < len(work) // k]
        rank = min(free, key=lambda r: load[r])
        hands[rank].append(head)
        load[rank] += work[head]
    return [sorted(hand) for hand in hands]


def check_heads(heads: int, k: int) -> None:
    """Raises UserError unless every one of k ranks can take whole heads, equally many."""
    if heads % k:
        possible = [n for n in range(2, heads + 1) if heads % n == 0]
        raise UserError(
            f"context_parallel={k} cannot share {heads} heads equally; type "
            f"context_parallel={'|'.join(map(str, possible))} and as many processes"
        )


class Ulysses:
    """This process's part in a group of ranks (a torch.distributed process group)."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.k, self.rank = group, dist.get_world_size(group), dist.get_rank(group)
        self.tokens = 0  # video tokens of this forward, of all ranks together
        self.handle = id(self)
        _every[self.handle] = self

    def install(self, first: nn.Module, last: nn.Module) -> None:
        """Cut the tokens before `first`, a block; gather them after `last`, a linear layer."""

        def cut(module: nn.Module, args: tuple) -> tuple:
            self.tokens = args[0].shape[1]
            return self.cut(args[0]), *args[1:]

        first.register_forward_pre_hook(cut)
        last.register_forward_hook(  # before any hook that wants all tokens
            lambda module, args, out: gather_tokens(out, self.handle, self.tokens), prepend=True
        )

    # -- tokens -------------------------------------------------------------------------------

    def shares(self, n: int) -> list[int]:
        """How many of n tokens each rank holds."""
        return [n // self.k + (r < n % self.k) for r in range(self.k)]

    def cut(self, x: Tensor, dim: int = 1) -> Tensor:
        """This rank's tokens."""
        return x.tensor_split(self.k, dim)[self.rank].contiguous()

    def cut_rotary(self, tables: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """This rank's rows of rotary tables: (1, L, 1, d) in Wan, (L, d) in HunyuanVideo."""
        return tuple(self.cut(x, 1 if x.ndim == 4 else 0) for x in tables)

    # -- heads --------------------------------------------------------------------------------

    def deal(self, heads: int, work: list[float] | None) -> Heads:
        """Which heads each rank takes: in order, or balanced by the work that each costs."""
        if work is None or len(set(work)) == 1:
            size = heads // self.k
            return [list(range(r * size, (r + 1) * size)) for r in range(self.k)]
        return deal_heads(work, self.k)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: Heads, attention) -> Tensor:
        """attention(q, k, v) of whole heads, from and to (B, L/k + text, H, d)."""
        shares, own = self.shares(self.tokens), heads[self.rank]
        qkv = torch.cat([q, k, v])  # one exchange instead of three
        B, n, d = len(qkv), shares[self.rank], qkv.shape[3]
        sent = [qkv[:, :n, h] for h in heads]
        mine = self._exchange(sent, [(B, m, len(own), d) for m in shares])
        mine = torch.cat([*mine, qkv[:, n:, own]], 1)
        out = attention(*mine.chunk(3))
        sent = out[:, : self.tokens].split(shares, 1)
        back = self._exchange(sent, [(len(q), n, len(h), d) for h in heads])
        video = torch.cat(back, 2).index_select(2, _places(heads, q.device))
        if out.shape[1] == self.tokens:
            return video
        return torch.cat([video, self.gather_heads(out[:, self.tokens :], 2, heads)], 1)

    def gather_heads(self, x: Tensor, dim: int, heads: Heads) -> Tensor:
        """Every rank's heads along `dim`, in the model's order."""
        found = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in heads]
        dist.all_gather(found, x.contiguous(), self.group)
        return torch.cat(found, dim).index_select(dim, _places(heads, x.device))

    def _exchange(self, sent, shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """One piece to every rank, one of known shape from every rank."""
        sizes = [torch.Size(s).numel() for s in shapes]
        out = sent[0].new_empty(sum(sizes))
        flat = torch.cat([x.flatten() for x in sent])
        dist.all_to_all_single(out, flat, sizes, [x.numel() for x in sent], self.group)
        return [x.view(s) for x, s in zip(out.split(sizes), shapes, strict=True)]


def share_videos(backbone: Any, group: dist.ProcessGroup) -> None:
    """From now on the ranks of `group` compute every video of a loaded backbone together.

    Raises UserError if they cannot share its heads.
    """
    ranks = Ulysses(group)
    for transformer in backbone.experts:
        check_heads(transformer.config.num_attention_heads, ranks.k)
        blocks = getattr(transformer, "blocks", None) or transformer.transformer_blocks
        ranks.install(blocks[0], transformer.proj_out)
    backbone.router.ranks = ranks


_every: weakref.WeakValueDictionary[int, Ulysses] = weakref.WeakValueDictionary()


@torch.library.custom_op("s2flow::gather_tokens", mutates_args=())
def gather_tokens(x: Tensor, handle: int, tokens: int) -> Tensor:
    """(B, L/k, D) of every rank -> (B, L, D): one node of a compiled graph."""
    ranks = _every[handle]
    shares = ranks.shares(tokens)
    padded = F.pad(x, (0, 0, 0, shares[0] - x.shape[1])).contiguous()
    found = [torch.empty_like(padded) for _ in shares]
    dist.all_gather(found, padded, ranks.group)
    return torch.cat([part[:, :n] for part, n in zip(found, shares, strict=True)], 1)


@gather_tokens.register_fake
def _(x: Tensor, handle: int, tokens: int) -> Tensor:
    return x.new_empty(x.shape[0], tokens, x.shape[2])


def _places(heads: Heads, device: torch.device) -> Tensor:
    """Where each head of the model's order stands among the ranks' heads."""
    order = torch.tensor([m for hand in heads for m in hand])
    return order.argsort().to(device)
