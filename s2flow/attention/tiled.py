"""Window attention in plain torch, without masks: dense calls over views of one band of keys.

Windows are shifted inward, so along an axis of g bricks a window of width w takes g - w + 1 positions:
the first and the last are shared by the queries near a border, each one between belongs to one query
brick. All queries with the same position along all three axes see exactly the same box, so the whole
map is prod(g - w + 1) small *dense* attentions: no padding, no mask, nothing computed twice, ragged
grids included: the pairs computed are the valid pairs that the realised density counts.

For each pair of positions on two of the axes, keys are copied once, with the third axis outermost: then
the box of every position on it is a contiguous stretch of that band, and all positions between the
borders are one batch of overlapping views. Heads of equal windows go together, so many at once that
the copies stay small.

Where boxes are many and tiny, one dense call under a mask is faster and takes their place; it needs
tokens^2 bytes, so only small grids are computed like that.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from s2flow.attention.batches import boxes_of, clip_by_clip, log_sum_exp
from s2flow.windows import Box, brick_grid, window_mask, window_starts

IN_BRICKS = False
AUTO = ("cpu", "cuda", "mps")
COPIED = {"cpu": 2**24, "cuda": 2**28}  # bytes of keys and values copied at once


def unusable(q: Tensor, brick: Box) -> str | None:
    """Why it cannot be used for such q; never."""
    return None


def axis_spans(n: int, b: int, w: int) -> list[tuple[slice, slice]]:
    """(queries, keys) token ranges of the distinct window positions along one axis."""
    spans = []
    starts = window_starts(math.ceil(n / b), w)
    for start, group in itertools.groupby(enumerate(starts), key=lambda pair: pair[1]):
        bricks = [i for i, _ in group]
        queries = slice(bricks[0] * b, min((bricks[-1] + 1) * b, n))
        spans.append((queries, slice(start * b, min((start + w) * b, n))))
    return spans


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    windows: Tensor,
    tokens: Box,
    brick: Box,
    text: list[int] | None = None,
    lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """See `s2flow.attention`."""
    n_video = math.prod(tokens)

    def attend(clips: slice, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
        boxes, _ = boxes_of(windows[clips])
        out = torch.empty_like(q)
        sums = torch.empty(q.shape[:-1], device=q.device) if lse else None
        if q.shape[2] > n_video:  # text queries attend everything
            out[:, :, n_video:] = F.scaled_dot_product_attention(q[:, :, n_video:], k, v)
            if sums is not None:
                sums[:, :, n_video:] = log_sum_exp(q[:, :, n_video:], k)
        for box in sorted(set(boxes)):
            heads = [m for m, b in enumerate(boxes) if b == box]
            for some in _at_once(heads, k, box, tokens, brick):
                _windowed(q, k, v, some, box, tokens, brick, out, sums)
        return out, sums

    alike = boxes_of(windows)[1]
    return clip_by_clip(attend, q, k, v, n_video, text, lse, alike)


def _at_once(heads: list[int], k: Tensor, box: Box, tokens: Box, brick: Box):
    """Heads of one window, in slices or lists of as many as may be copied at once."""
    keys = math.prod(tokens)
    one = 2 * len(k) * keys * k.shape[-1] * k.element_size()
    n = max(COPIED.get(k.device.type, 2**28) // one, 1)
    for i in range(0, len(heads), n):
        some = heads[i : i + n]
        together = some[-1] - some[0] == len(some) - 1
        yield slice(some[0], some[-1] + 1) if together else some


def _windowed(q, k, v, heads, box: Box, tokens: Box, brick: Box, out: Tensor, sums) -> None:
    """Video queries of some heads that share one window, written to `out` and `sums`."""
    n_video = math.prod(tokens)
    spans = [axis_spans(n, b, w) for n, b, w in zip(tokens, brick, box, strict=True)]
    inner = max(range(3), key=lambda a: len(spans[a]))
    a, b = (axis for axis in range(3) if axis != inner)

    def grid(x: Tensor) -> Tensor:
        """(B, heads, inner, a, b, ...): a view."""
        return x[:, :, :n_video].unflatten(2, tokens).movedim((2 + inner, 2 + a, 2 + b), (2, 3, 4))

    Q, K, V, O = (grid(x) for x in (q, k, v, out))
    S = None if sums is None else grid(sums)
    texts = [x[:, heads, n_video:] for x in (k, v)]
    attend = _positions if q.shape[2] == n_video else _positions_and_text
    for (qa, ka), (qb, kb) in itertools.product(spans[a], spans[b]):
        queries = Q[:, :, :, qa, qb][:, heads]
        band = [x[:, :, :, ka, kb][:, heads].flatten(3, 4) for x in (K, V)]
        flat = queries.flatten(3, 4)
        found, found_sums = attend(flat, *band, *texts, spans[inner], brick[inner], S is not None)
        O[:, heads, :, qa, qb] = found.view(queries.shape)
        if S is not None:
            S[:, heads, :, qa, qb] = found_sums.view(queries.shape[:-1])


def _positions(Q, K, V, text_k, text_v, spans, b: int, lse: bool):
    """All positions along the inner axis: Q, K, V (B, heads, inner, rest, d) -> like Q, and lse."""
    out, batch = torch.empty_like(Q), Q.shape[:2]
    sums = torch.empty(Q.shape[:-1], device=Q.device) if lse else None

    def attend(queries: slice, keys: slice, pieces: int = 1, step: int = 0) -> None:
        """`pieces` positions at once, each `step` further along than the last."""
        n = (queries.stop - queries.start) // pieces
        mine = Q[:, :, queries].reshape(-1, pieces, n * Q.shape[3], Q.shape[4])
        size = (keys.stop - keys.start - (pieces - 1) * step) * K.shape[3]
        k, v = (
            x[:, :, keys]
            .reshape(-1, (keys.stop - keys.start) * K.shape[3], K.shape[4])
            .unfold(1, size, max(step * K.shape[3], 1))
            .transpose(-1, -2)
            for x in (K, V)
        )
        found = F.scaled_dot_product_attention(mine, k, v)
        out[:, :, queries] = found.reshape(*batch, n * pieces, *Q.shape[3:])
        if sums is not None:
            sums[:, :, queries] = log_sum_exp(mine, k).view(*batch, n * pieces, Q.shape[3])

    if len(spans) < 4:
        for queries, keys in spans:
            attend(queries, keys)
        return out, sums
    attend(*spans[0])
    between = spans[1:-1]  # one whole query brick each
    queries = slice(between[0][0].start, between[-1][0].stop)
    attend(queries, slice(between[0][1].start, between[-1][1].stop), len(between), b)
    attend(*spans[-1])
    return out, sums


def _positions_and_text(Q, K, V, text_k, text_v, spans, b: int, lse: bool):
    """The same with text behind the keys of every box."""
    out = torch.empty_like(Q)
    sums = torch.empty(Q.shape[:-1], device=Q.device) if lse else None
    for queries, keys in spans:
        mine = Q[:, :, queries].flatten(2, 3)
        k = torch.cat([K[:, :, keys].flatten(2, 3), text_k], 2)
        v = torch.cat([V[:, :, keys].flatten(2, 3), text_v], 2)
        found = F.scaled_dot_product_attention(mine, k, v)
        out[:, :, queries] = found.unflatten(2, (-1, Q.shape[3]))
        if sums is not None:
            sums[:, :, queries] = log_sum_exp(mine, k).unflatten(2, (-1, Q.shape[3]))
    return out, sums
