"""Window attention (Eq. 7): every backend is masked softmax attention, and masked means masked."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from s2flow.attention import window_attention
from s2flow.errors import UserError
from s2flow.windows import brick_grid, window_mask

GRIDS = [  # tokens, brick
    ((4, 4, 6), (1, 1, 1)),
    ((4, 4, 6), (1, 2, 2)),
    ((4, 8, 6), (2, 4, 2)),
    ((5, 7, 6), (2, 4, 4)),  # ragged on every axis
    ((3, 5, 7), (1, 2, 3)),  # ragged on two
]


def qkv(tokens, heads, n_text=0, batch=2, d=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, batch, heads, math.prod(tokens) + n_text, d)
    return torch.randn(shape, generator=generator) * torch.tensor([1.5, 1.5, 1.0]).view(
        3, 1, 1, 1, 1
    )


def some_boxes(tokens, brick, count=5):
    """Different windows per head: a single brick, the whole grid, and some between."""
    g = brick_grid(tokens, brick)
    every = list(itertools.product(*(range(1, n + 1) for n in g)))
    picks = [0, len(every) - 1, *range(1, len(every) - 1, max(len(every) // 3, 1))]
    return [every[i % len(every)] for i in picks][:count]


@pytest.mark.parametrize("n_text", [0, 5])
@pytest.mark.parametrize(("tokens", "brick"), GRIDS)
def test_tiled_equals_reference(tokens, brick, n_text):
    boxes = some_boxes(tokens, brick)
    boxes.append(boxes[0])  # heads of equal windows that are not neighbours
    q, k, v = qkv(tokens, len(boxes), n_text)
    args = (q, k, v, boxes, tokens, brick)
    found, truth = (window_attention(*args, backend=b) for b in ("tiled", "reference"))
    assert found.shape == q.shape and found.dtype == q.dtype
    assert float((found - truth).abs().max()) < 1e-5


@pytest.mark.parametrize(("tokens", "brick"), GRIDS)
def test_tiled_equals_reference_with_one_window_for_all_heads(tokens, brick):
    for box in some_boxes(tokens, brick, 3):
        q, k, v = qkv(tokens, 2, n_text=3)
        args = (q, k, v, [box] * 2, tokens, brick)
        found, truth = (window_attention(*args, backend=b) for b in ("tiled", "reference"))
        assert float((found - truth).abs().max()) < 1e-5


@pytest.mark.parametrize("backend", ["auto", "tiled", "reference"])
@pytest.mark.parametrize("box", [(1, 1, 1), (2, 3, 1), (4, 2, 5), (3, 4, 2)])
def test_brick_of_one_token_is_masked_attention_per_token(backend, box):
    """Written token by token, from the sentence: a box centred on the query, shifted inward."""
    tokens = (4, 4, 5)
    q, k, v = qkv(tokens, 1, batch=1)
    coordinates = list(itertools.product(*map(range, tokens)))
    expected = torch.empty_like(q[0, 0])
    for i, here in enumerate(coordinates):
        starts = [
            max(0, min(x - w // 2, n - w)) for x, w, n in zip(here, box, tokens, strict=True)
        ]
        keys = [
            j
            for j, key in enumerate(coordinates)
            if all(s <= y < s + w for s, y, w in zip(starts, key, box, strict=True))
        ]
        assert len(keys) == math.prod(box) and i in keys
        A = (k[0, 0, keys] @ q[0, 0, i] / math.sqrt(q.shape[-1])).softmax(0)
        expected[i] = A @ v[0, 0, keys]
    found = window_attention(q, k, v, [box], tokens, (1, 1, 1), backend)
    assert float((found[0, 0] - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_text_attends_everything_and_is_attended_by_everything(backend):
    tokens, brick, n_text = (4, 4, 6), (1, 2, 2), 4
    q, k, v = qkv(tokens, 2, n_text)
    boxes = [(1, 1, 1), (2, 1, 2)]
    out = window_attention(q, k, v, boxes, tokens, brick, backend)
    dense = F.scaled_dot_product_attention(q, k, v)
    assert float((out - dense)[:, :, -n_text:].abs().max()) < 1e-5
    # every text value reaches every video query
    for text in range(1, n_text + 1):
        changed = v.clone()
        changed[:, :, -text] += 10
        moved = window_attention(q, k, changed, boxes, tokens, brick, backend) - out
        assert float(moved.abs().amax(-1).min()) > 0


@pytest.mark.parametrize("backend", ["auto", "tiled", "reference"])
@pytest.mark.parametrize(("tokens", "brick"), GRIDS)
def test_padded_text_is_neither_seen_nor_answered(backend, tokens, brick):
    """Against one masked dense call; whatever stands in the padding."""
    n_video, n_text, text = math.prod(tokens), 5, (2, 5, 0)
    q, k, v = qkv(tokens, 3, n_text, batch=3)
    boxes = some_boxes(tokens, brick, 3)
    M = torch.ones(3, 3, n_video + n_text, n_video + n_text, dtype=torch.bool)
    for head, box in enumerate(boxes):
        M[:, head, :n_video, :n_video] = window_mask(tokens, brick, box)
    for clip, n in enumerate(text):
        M[clip, ..., n_video + n :] = False
    truth = F.scaled_dot_product_attention(q, k, v, M)
    for x in (k, v):
        for clip, n in enumerate(text):
            x[clip, :, n_video + n :] = math.nan
    found = window_attention(q, k, v, boxes, tokens, brick, backend, text)
    for clip, n in enumerate(text):
        real = slice(n_video + n)
        assert float((found - truth)[clip, :, real].abs().max()) < 1e-5
        assert not found[clip, :, n_video + n :].any()


@pytest.mark.parametrize("n_text", [0, 5])
@pytest.mark.parametrize(("tokens", "brick"), GRIDS)
def test_the_whole_grid_is_dense_attention(tokens, brick, n_text):
    q, k, v = qkv(tokens, 2, n_text)
    out = window_attention(q, k, v, [brick_grid(tokens, brick)] * 2, tokens, brick, "tiled")
    assert float((out - F.scaled_dot_product_attention(q, k, v)).abs().max()) < 1e-5


def papers_literal_mask(q, k, v, boxes, tokens, brick):
    """Eq. 7 as printed: logits times a 0/1 mask."""
    M = torch.stack([window_mask(tokens, brick, b) for b in boxes]).float()
    return (M * (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])).softmax(-1) @ v


def influence_of_masked_keys(attend, tokens, brick, boxes):
    """Largest change of one query's output when keys and values outside its window change."""
    q, k, v = qkv(tokens, len(boxes))
    before = attend(q, k, v, boxes, tokens, brick)
    worst = 0.0
    for head, box in enumerate(boxes):
        M = window_mask(tokens, brick, box)
        for query in (0, len(M) // 2, len(M) - 1):
            outside = ~M[query]
            k2, v2 = k.clone(), v.clone()
            k2[:, head, outside] *= -3
            v2[:, head, outside] += 100
            after = attend(q, k2, v2, boxes, tokens, brick)
            worst = max(worst, float((after - before)[:, head, query].abs().max()))
    return worst


@pytest.mark.parametrize(("tokens", "brick"), GRIDS)
@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_masked_keys_have_exactly_no_influence(backend, tokens, brick):
    def attend(*args):
        return window_attention(*args, backend)

    boxes = some_boxes(tokens, brick, 3)
    assert influence_of_masked_keys(attend, tokens, brick, boxes) == 0


def test_the_papers_literal_mask_lets_masked_keys_through():
    boxes = some_boxes((4, 4, 6), (1, 2, 2), 3)
    assert influence_of_masked_keys(papers_literal_mask, (4, 4, 6), (1, 2, 2), boxes) > 1


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_no_gradient_reaches_a_masked_key(backend):
    tokens, brick, box = (4, 4, 6), (1, 2, 2), (2, 1, 2)
    q, k, v = (x.requires_grad_() for x in qkv(tokens, 1, batch=1).unbind())
    query = 40
    window_attention(q, k, v, [box], tokens, brick, backend)[0, 0, query].sum().backward()
    inside = window_mask(tokens, brick, box)[query]
    for x in (k, v):
        assert float(x.grad[0, 0, ~inside].abs().max()) == 0
        assert float(x.grad[0, 0, inside].abs().amax(-1).min()) > 0


def test_reference_computes_in_float32_and_returns_the_models_type():
    tokens, brick = (4, 4, 6), (1, 2, 2)
    q, k, v = qkv(tokens, 2).bfloat16().unbind()
    boxes = [(1, 1, 1), (4, 2, 3)]
    exact = window_attention(q.float(), k.float(), v.float(), boxes, tokens, brick, "reference")
    for backend in ("tiled", "reference"):
        out = window_attention(q, k, v, boxes, tokens, brick, backend)
        assert out.dtype == torch.bfloat16
        assert float((out.float() - exact).abs().max()) < 0.03


def test_unknown_backend_says_what_to_type():
    q, k, v = qkv((2, 2, 2), 1)
    with pytest.raises(UserError, match="attention=flash") as error:
        window_attention(q, k, v, [(1, 1, 1)], (2, 2, 2), (1, 1, 1), "flash")
    assert "tiled" in str(error.value) and "reference" in str(error.value)
