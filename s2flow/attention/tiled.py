"""Window attention in plain torch, without masks: dense calls over views of one band of keys.

Windows are shifted inward, so along an axis of g bricks a window of width w takes g - w + 1 positions:
the first and the last are shared by the queries near a border, each one between belongs to one query
brick. All queries with the same position along all three axes see the same box, so the whole map is
prod(g - w + 1) small *dense* attentions of valid pairs alone, ragged grids included.

For each pair of positions on two of the axes, keys are copied once, with the third axis outermost: then
the box of every position on it is a contiguous stretch of that band, and all positions between the
borders are one batch of overlapping views. Heads of equal windows go together.

Where boxes are many and tiny, one dense call under a mask of tokens^2 bytes is faster (`masked`).
"""

import functools
import itertools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from s2flow.attention.batches import attend_text, parts, results
from s2flow.attention.problem import Problem
from s2flow.grid import Box, brick_grid, realised_density, window_mask, window_starts

IN_BRICKS = False
AUTO = ("cpu", "cuda", "mps")
MASKED = 2048  # tokens up to which a mask may be faster
CALL = 5e6  # what a call costs beside its work, in query-key pairs times head_dim (two CPU cores)
COPIED = {"cpu": 2**20, "cuda": 2**28}  # bytes of keys and values copied at once
ROWS = {"cpu": 2**20, "cuda": 2**27}  # bytes of queries at once


def axis_spans(n: int, b: int, w: int) -> list[tuple[slice, slice]]:
    """(queries, keys) token ranges of the distinct window positions along one axis."""
    spans = []
    starts = window_starts(math.ceil(n / b), w)
    for start, group in itertools.groupby(enumerate(starts), key=lambda pair: pair[1]):
        bricks = [i for i, _ in group]
        queries = slice(bricks[0] * b, min((bricks[-1] + 1) * b, n))
        spans.append((queries, slice(start * b, min((start + w) * b, n))))
    return spans


def window_attention(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Tensor:
    """See `s2flow.attention`."""
    tokens, brick, n_video = problem.tokens, problem.brick, problem.n_video
    out = results(q, problem)
    alike = bool((problem.windows == problem.windows[:1]).all())
    for clips, Q, K, V, O in parts(problem, q, k, v, out, together=alike):
        boxes = [tuple(b) for b in problem.windows[clips][0].tolist()]
        attend_text(Q, K, V, n_video, O)
        for box in sorted(set(boxes)):
            heads = [m for m, b in enumerate(boxes) if b == box]
            whole = box == problem.grid
            dense = whole or masked(box, tokens, brick, q.shape[-1] * len(heads))
            cut = (tokens, brick, box, Q.shape[2] - n_video, q.device)
            M = _mask(*cut) if dense and not whole else None
            for some in _at_once(heads, K, n_video):
                if dense:
                    qkv = Q[:, some, :n_video], K[:, some], V[:, some]
                    O[:, some, :n_video] = F.scaled_dot_product_attention(*qkv, M)
                else:
                    _windowed(Q, K, V, O, some, box, problem)
    return out


def masked(box: Box, tokens: Box, brick: Box, width: int) -> bool:
    """Whether one call under a mask is faster; width: head_dim times the heads of this window."""
    n = math.prod(tokens)
    if n > MASKED:
        return False
    positions = sorted(g - w + 1 for g, w in zip(brick_grid(tokens, brick), box, strict=True))
    calls = positions[0] * positions[1] * min(positions[2], 3)
    saved = width * n**2 * (1.3 - realised_density(tokens, brick, box))  # the mask is read, too
    return calls * CALL > saved


@functools.lru_cache(maxsize=32)
def _mask(tokens: Box, brick: Box, box: Box, n_text: int, device: torch.device) -> Tensor:
    return F.pad(window_mask(tokens, brick, box), (0, n_text), value=True).to(device)


def _at_once(heads: list[int], k: Tensor, n_video: int) -> Iterator[slice | list[int]]:
    """Heads of one window, in slices or lists of as many as may be copied at once."""
    one = 2 * len(k) * n_video * k.shape[-1] * k.element_size()
    n = max(COPIED.get(k.device.type, 2**28) // one, 1)
    for i in range(0, len(heads), n):
        some = heads[i : i + n]
        together = some[-1] - some[0] == len(some) - 1
        yield slice(some[0], some[-1] + 1) if together else some


def _windowed(q, k, v, out: Tensor, heads, box: Box, problem: Problem) -> None:
    """Video queries of some heads that share one window, written to `out`."""
    tokens, brick, n_video = problem.tokens, problem.brick, problem.n_video
    spans = [axis_spans(n, b, w) for n, b, w in zip(tokens, brick, box, strict=True)]
    inner = max(range(3), key=lambda a: len(spans[a]))
    a, b = (axis for axis in range(3) if axis != inner)

    def grid(x: Tensor) -> Tensor:
        """(B, heads, inner, a, b, ...): a view."""
        return x[:, :, :n_video].unflatten(2, tokens).movedim((2 + inner, 2 + a, 2 + b), (2, 3, 4))

    Q, K, V, O = (grid(x) for x in (q, k, v, out))
    texts = [x[:, heads, n_video:] for x in (k, v)]
    for (qa, ka), (qb, kb) in itertools.product(spans[a], spans[b]):
        keys, values = (x[:, :, :, ka, kb][:, heads].flatten(3, 4) for x in (K, V))
        one = Q[:, heads, :1, qa, qb]
        rows = max(ROWS.get(q.device.type, 2**27) // (one.numel() * one.element_size()), 1)
        for at, of, pieces, step in _runs(spans[inner], brick[inner], rows):
            K_at, V_at = _positions(keys[:, :, of], values[:, :, of], texts, pieces, step)
            queries = Q[:, heads, at, qa, qb]
            Q_at = queries.flatten(2, 4).reshape(len(K_at), pieces, -1, q.shape[-1])
            O_at = F.scaled_dot_product_attention(Q_at, K_at, V_at)  # (Eq. 7)
            O[:, heads, at, qa, qb] = O_at.reshape(queries.shape)


def _runs(spans: list, b: int, rows: int) -> Iterator[tuple[slice, slice, int, int]]:
    """(queries, keys, pieces, step) along the inner axis, of about `rows` rows of queries each.

    Positions between the borders hold one whole query brick each and move on by one brick, so that
    several of them are `pieces` of one run, each `step` = b further along its keys.
    """
    for queries, keys in (spans[0], spans[-1]) if len(spans) > 3 else spans:
        for i in range(queries.start, queries.stop, rows):
            yield slice(i, min(i + rows, queries.stop)), keys, 1, 0
    between = spans[1:-1] if len(spans) > 3 else []
    n = max(rows // b, 1)
    for i in range(0, len(between), n):
        run = between[i : i + n]
        queries, keys = (slice(a.start, z.stop) for a, z in zip(run[0], run[-1], strict=True))
        yield queries, keys, len(run), b


def _positions(K: Tensor, V: Tensor, texts: list[Tensor], pieces: int, step: int):
    """Keys and values of `pieces` positions: (B, heads, inner, rest, d) -> (B heads, pieces, keys, d).

    Views; where there is text, copies with it behind the keys of every position.
    """
    rest, d = K.shape[3:]
    size = (K.shape[2] - (pieces - 1) * step) * rest
    views = [
        x.reshape(-1, x.shape[2] * rest, d).unfold(1, size, max(step * rest, 1)).mT for x in (K, V)
    ]
    if texts[0].shape[2]:
        more = (x.flatten(0, 1)[:, None].expand(-1, pieces, -1, -1) for x in texts)
        views = [torch.cat(both, 2) for both in zip(views, more, strict=True)]
    return views
