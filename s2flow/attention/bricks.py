"""Block-sparse attention: every query brick attends a few key bricks of its own choice (MoBA-like).

    s(i, j) = (mean of q over brick i) . (mean of k over brick j)          per head, in float32
    bricks of i = the `keep` largest s(i, .), with i itself always among them

Text is not chosen: it is attended by every query and attends everything. On ragged grids a brick is
what it has of tokens; the rest is masked.

Deviation: MoBA (arXiv 2502.13189) gates per query token and is causal; here a whole query brick shares
its choice, so that its keys are gathered once, and video is not causal.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from s2flow.attention.batches import attend_text, parts, results
from s2flow.attention.problem import Problem
from s2flow.grid import Box, brick_ids, brick_slots

# bytes of gathered keys and values that exist at once; on a CPU they should stay in its cache
GATHERED = {"cpu": 2**22, "cuda": 2**28}


def pooled(x: Tensor, slots: Tensor) -> Tensor:
    """Mean over the tokens of every brick: (B, heads, L, d) -> (B, heads, bricks, d) float32."""
    there = (slots >= 0).to(x.device)
    gathered = x[:, :, slots.clamp(min=0).to(x.device)].float() * there[..., None]
    return gathered.sum(-2) / there.sum(-1, keepdim=True)


def choose_bricks(q: Tensor, k: Tensor, keep: int, tokens: Box, brick: Box) -> Tensor:
    """The key bricks of every query brick, (B, heads, bricks, keep), in ascending order."""
    slots = brick_slots(tokens, brick)
    scores = pooled(q, slots) @ pooled(k, slots).transpose(-1, -2)
    scores.diagonal(dim1=-2, dim2=-1).fill_(math.inf)  # a query's own brick
    return scores.topk(keep).indices.sort().values


def brick_density(chosen: Tensor, tokens: Box, brick: Box) -> Tensor:
    """Share of valid query-key pairs in the chosen bricks: (B, heads), float32."""
    sizes = (brick_slots(tokens, brick) >= 0).sum(1).to(chosen.device, torch.float32)
    sizes = sizes / sizes.sum()
    return (sizes * sizes[chosen].sum(-1)).sum(-1)


def brick_attention(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, problem: Problem, backend: str = "auto"
) -> Tensor:
    """Attention of every query brick over its chosen key bricks, and text.

    q, k, v and result as in `s2flow.attention.window_attention`, video tokens row-major; chosen:
    (B, heads, bricks, keep); backend: "reference" for the masked twin, else the gathering one.
    """
    attend = masked if backend == "reference" else gathering
    out = results(q, problem)
    for clips, *qkvo in parts(problem, q, k, v, out):
        attend(*qkvo, chosen[clips], problem)
    return out


def masked(q, k, v, out: Tensor, chosen: Tensor, problem: Problem) -> None:
    """The twin: a mask over all pairs, in float32. Memory is quadratic in the number of tokens."""
    where, n_video = brick_ids(problem.tokens, problem.brick), problem.n_video
    allowed = torch.zeros(*chosen.shape[:3], chosen.shape[2], dtype=torch.bool)
    allowed.scatter_(-1, chosen.cpu(), True)
    M = torch.ones(*q.shape[:3], q.shape[2], dtype=torch.bool)
    M[:, :, :n_video, :n_video] = allowed[:, :, where][..., where]
    logits = q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
    A = logits.masked_fill(~M.to(q.device), -math.inf).softmax(-1)
    out[:] = (A @ v.float()).to(q.dtype)


def gathering(q, k, v, out: Tensor, chosen: Tensor, problem: Problem) -> None:
    """Dense calls over (clip, head, query brick), as many at once as memory allows.

    The keys of each are gathered beside it; only ragged grids need a mask.
    """
    slots, n_video = brick_slots(problem.tokens, problem.brick), problem.n_video
    real, index = (slots >= 0).to(q.device), slots.clamp(min=0).to(q.device)
    B, heads, bricks, keep = chosen.shape
    d, slot, n_text = q.shape[-1], slots.shape[1], q.shape[2] - n_video
    attend_text(q, k, v, n_video, out)
    K, V = (x[:, :, index].flatten(0, 1) for x in (k, v))  # (B heads, bricks, slot, d)
    text = [x[:, :, n_video:].flatten(0, 1)[:, None] for x in (k, v)]
    pair = torch.arange(B * heads, device=q.device)[:, None, None]
    one = 2 * B * heads * (keep * slot + n_text) * d * q.element_size()
    n = max(GATHERED.get(q.device.type, 2**28) // one, 1)
    for i in range(0, bricks, n):
        key_bricks = chosen.flatten(0, 1)[:, i : i + n]
        c = key_bricks.shape[1]
        keys, values = (
            torch.cat([x[pair, key_bricks].flatten(2, 3), t.expand(-1, c, -1, -1)], 2)
            for x, t in zip((K, V), text, strict=True)
        )
        mask = None
        if problem.ragged:
            mask = F.pad(real[key_bricks].flatten(2, 3), (0, n_text), value=True)[:, :, None]
        queries = q[:, :, index[i : i + n]].flatten(0, 1)
        rows = F.scaled_dot_product_attention(queries, keys, values, mask)
        valid = real[i : i + n]
        out[:, :, index[i : i + n][valid]] = rows.unflatten(0, (B, heads))[:, :, valid]
