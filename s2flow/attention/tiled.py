"""Window attention in plain torch, without masks: one dense call per distinct box of keys.

Because windows are shifted inward, queries near a border share their keys, and along one axis of g
bricks a window of width w takes only g - w + 1 positions. All queries with the same position along all
three axes see exactly the same box, so the whole map is prod(g - w + 1) small *dense* attentions: no
padding, no mask, nothing computed twice, ragged grids included: the pairs computed are the valid pairs
that the realised density counts. Heads of equal windows go together.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from s2flow.windows import Box, window_starts


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
    q: Tensor, k: Tensor, v: Tensor, boxes: list[Box], tokens: Box, brick: Box
) -> Tensor:
    """See `s2flow.attention.window_attention`."""
    n_video = math.prod(tokens)
    out = torch.empty_like(q)
    if q.shape[2] > n_video:  # text queries attend everything
        out[:, :, n_video:] = F.scaled_dot_product_attention(q[:, :, n_video:], k, v)
    for box in sorted(set(boxes)):
        heads = [m for m, b in enumerate(boxes) if b == box]
        whole = len(heads) == len(boxes)
        qh, kh, vh = (x if whole else x[:, heads] for x in (q, k, v))
        video = _windowed(qh, kh, vh, box, tokens, brick)
        if whole:
            out[:, :, :n_video] = video
        else:
            out[:, heads, :n_video] = video
    return out


def _windowed(q: Tensor, k: Tensor, v: Tensor, box: Box, tokens: Box, brick: Box) -> Tensor:
    """Video queries of heads that share one window: (B, heads, T*H*W, d)."""
    n_video = math.prod(tokens)
    Q, K, V = (x[:, :, :n_video].unflatten(2, tokens) for x in (q, k, v))
    text_k, text_v = k[:, :, n_video:], v[:, :, n_video:]
    out = torch.empty_like(Q)
    spans = [axis_spans(n, b, w) for n, b, w in zip(tokens, brick, box, strict=True)]
    for (qt, kt), (qh, kh), (qw, kw) in itertools.product(*spans):
        queries = Q[:, :, qt, qh, qw]
        keys = torch.cat([K[:, :, kt, kh, kw].flatten(2, 4), text_k], 2)
        values = torch.cat([V[:, :, kt, kh, kw].flatten(2, 4), text_v], 2)
        found = F.scaled_dot_product_attention(queries.flatten(2, 4), keys, values)
        out[:, :, qt, qh, qw] = found.view(queries.shape)
    return out.flatten(2, 4)
