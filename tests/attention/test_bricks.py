"""Block-sparse attention over chosen bricks: what is chosen, that both paths agree, what it keeps."""

import math

import pytest
import torch
import torch.nn.functional as F
from plain import qkv

from s2flow.attention import Problem, bricks
from s2flow.grid import brick_grid, brick_ids

RAGGED = ((5, 7, 6), (2, 4, 4))  # on every axis
GRIDS = [((4, 4, 6), (1, 2, 2)), ((4, 8, 6), (2, 4, 2)), RAGGED, ((3, 5, 7), (1, 2, 3))]
grids = pytest.mark.parametrize(("tokens", "brick"), GRIDS)


def attended(q, k, v, chosen, tokens, brick, backend="auto", text=None):
    problem = Problem.of(q, tokens, brick, text=text)
    return bricks.brick_attention(q, k, v, chosen, problem, backend)


@grids
def test_chosen_are_the_most_similar_means_and_the_own_brick(tokens, brick):
    q, k, _ = qkv(tokens, n_text=4)
    number, keep, video = brick_ids(tokens, brick), 3, math.prod(tokens)
    own = (number == 1).nonzero()[:, 0]
    q[:, :, own] = -20 * k[:, :, own]  # a brick that likes itself least
    chosen = bricks.choose_bricks(q, k, keep, tokens, brick)
    n = math.prod(brick_grid(tokens, brick))
    assert chosen.shape == (2, 3, n, keep)
    for b, m in ((0, 0), (1, 2)):
        Q, K = (
            torch.stack([x[b, m, :video][number == i].mean(0) for i in range(n)]) for x in (q, k)
        )
        for i in range(n):
            scores = K @ Q[i]
            scores[i] = math.inf
            assert chosen[b, m, i].tolist() == sorted(scores.topk(keep).indices.tolist())


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("n_text", [0, 5])
@grids
def test_all_bricks_are_dense_attention(tokens, brick, n_text, backend):
    q, k, v = qkv(tokens, 3, n_text)
    chosen = bricks.choose_bricks(q, k, math.prod(brick_grid(tokens, brick)), tokens, brick)
    out = attended(q, k, v, chosen, tokens, brick, backend)
    assert float((out - F.scaled_dot_product_attention(q, k, v)).abs().max()) < 1e-5
    assert bricks.brick_density(chosen, tokens, brick) == pytest.approx(1)


@pytest.mark.parametrize("memory", [1, 2**22])  # one query brick at a time, or all
@pytest.mark.parametrize("n_text", [0, 5])
@grids
def test_gathering_equals_masked_attention(tokens, brick, n_text, memory, monkeypatch):
    monkeypatch.setitem(bricks.GATHERED, "cpu", memory)
    q, k, v = qkv(tokens, 3, n_text)
    chosen = bricks.choose_bricks(q, k, 2, tokens, brick)
    args = (q, k, v, chosen, tokens, brick)
    found, truth = (attended(*args, b) for b in ("auto", "reference"))
    assert float((found - truth).abs().max()) < 1e-5
    # the twin itself, from the sentence: row by row over the tokens of the chosen bricks, and text
    number, video = brick_ids(tokens, brick), math.prod(tokens)
    for i in range(0, video, 7):
        keys = [j for j in range(video) if number[j] in chosen[1, 2, number[i]]]
        keys += range(video, video + n_text)
        A = (k[1, 2, keys] @ q[1, 2, i] / math.sqrt(q.shape[-1])).softmax(0)
        assert float((truth[1, 2, i] - A @ v[1, 2, keys]).abs().max()) < 1e-5
    dense = F.scaled_dot_product_attention(q[:, :, video:], k, v)
    assert n_text == 0 or float((found[:, :, video:] - dense).abs().max()) < 1e-5


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_padded_text_is_neither_seen_nor_answered(backend):
    text, n_video = (2, 5), math.prod(RAGGED[0])
    q, k, v = qkv(RAGGED[0], 3, 5)
    chosen = bricks.choose_bricks(q, k, 2, *RAGGED)
    alone = []
    for i, n in enumerate(text):
        cut = [x[i : i + 1, :, : n_video + n] for x in (q, k, v)]
        alone.append(attended(*cut, chosen[i : i + 1], *RAGGED, "reference"))
    k[0, :, n_video + 2 :] = v[0, :, n_video + 2 :] = math.nan
    found = attended(q, k, v, chosen, *RAGGED, backend, text)
    for i, n in enumerate(text):
        assert float((found[i : i + 1, :, : n_video + n] - alone[i]).abs().max()) < 1e-5
        assert not found[i, :, n_video + n :].any()


@grids
def test_density_counts_valid_pairs(tokens, brick):
    q, k, _ = qkv(tokens)
    chosen, number = bricks.choose_bricks(q, k, 3, tokens, brick), brick_ids(tokens, brick)
    found = bricks.brick_density(chosen, tokens, brick)
    for b, m in ((0, 1), (1, 2)):
        pairs = sum(int((number == j).sum()) for i in number for j in chosen[b, m, i])
        assert float(found[b, m]) == pytest.approx(pairs / math.prod(tokens) ** 2)
