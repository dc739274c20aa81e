"""Window attention (Eq. 7): every backend is masked softmax attention, and masked means masked."""

import functools
import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from plain import kind, of_backend, windowed

from s2flow.attention import dispatch, tiled
from s2flow.attention.order import brick_order, reordered
from s2flow.costs.trace import tracing
from s2flow.errors import UserError
from s2flow.grid import brick_grid, window_mask
from s2flow.windows import DEFAULT_EXPONENTS, candidates

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
    found, truth = (windowed(*args, backend=b) for b in ("tiled", "reference"))
    assert found.shape == q.shape and found.dtype == q.dtype
    assert float((found - truth).abs().max()) < 1e-5


@pytest.mark.parametrize(("tokens", "brick"), GRIDS)
def test_tiled_equals_reference_with_one_window_for_all_heads(tokens, brick):
    for box in some_boxes(tokens, brick, 3):
        q, k, v = qkv(tokens, 2, n_text=3)
        args = (q, k, v, [box] * 2, tokens, brick)
        found, truth = (windowed(*args, backend=b) for b in ("tiled", "reference"))
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
    found = windowed(q, k, v, [box], tokens, (1, 1, 1), backend)
    assert float((found[0, 0] - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_text_attends_everything_and_is_attended_by_everything(backend):
    tokens, brick, n_text = (4, 4, 6), (1, 2, 2), 4
    q, k, v = qkv(tokens, 2, n_text)
    boxes = [(1, 1, 1), (2, 1, 2)]
    out = windowed(q, k, v, boxes, tokens, brick, backend)
    dense = F.scaled_dot_product_attention(q, k, v)
    assert float((out - dense)[:, :, -n_text:].abs().max()) < 1e-5
    # every text value reaches every video query
    for text in range(1, n_text + 1):
        changed = v.clone()
        changed[:, :, -text] += 10
        moved = windowed(q, k, changed, boxes, tokens, brick, backend) - out
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
    found = windowed(q, k, v, boxes, tokens, brick, backend, text)
    for clip, n in enumerate(text):
        real = slice(n_video + n)
        assert float((found - truth)[clip, :, real].abs().max()) < 1e-5
        assert not found[clip, :, n_video + n :].any()


@pytest.mark.parametrize("n_text", [0, 5])
@pytest.mark.parametrize(("tokens", "brick"), GRIDS)
def test_the_whole_grid_is_dense_attention(tokens, brick, n_text):
    q, k, v = qkv(tokens, 2, n_text)
    out = windowed(q, k, v, [brick_grid(tokens, brick)] * 2, tokens, brick, "tiled")
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
        return windowed(*args, backend)

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
    windowed(q, k, v, [box], tokens, brick, backend)[0, 0, query].sum().backward()
    inside = window_mask(tokens, brick, box)[query]
    for x in (k, v):
        assert float(x.grad[0, 0, ~inside].abs().max()) == 0
        assert float(x.grad[0, 0, inside].abs().amax(-1).min()) > 0


def test_reference_computes_in_float32_and_returns_the_models_type():
    tokens, brick = (4, 4, 6), (1, 2, 2)
    q, k, v = qkv(tokens, 2).bfloat16().unbind()
    boxes = [(1, 1, 1), (4, 2, 3)]
    exact = windowed(q.float(), k.float(), v.float(), boxes, tokens, brick, "reference")
    for backend in ("tiled", "reference"):
        out = windowed(q, k, v, boxes, tokens, brick, backend)
        assert out.dtype == torch.bfloat16
        assert float((out.float() - exact).abs().max()) < 0.03


def test_unknown_backend_says_what_to_type():
    q, k, v = qkv((2, 2, 2), 1)
    with pytest.raises(UserError, match="attention=flash") as error:
        windowed(q, k, v, [(1, 1, 1)], (2, 2, 2), (1, 1, 1), "flash")
    assert "tiled" in str(error.value) and "reference" in str(error.value)


# -- what every backend must hold, here tiled ----------------------------------------------------


def hard(kind, tokens, heads, n_text, d=16):
    """q, k, v of two clips that strain a softmax."""
    q, k, v = qkv(tokens, heads, n_text, d=d).unbind()
    if kind == "peaked":  # one key takes nearly all
        q, k = q * 12, k * 3
    if kind == "flat":
        q = q * 0
    if kind == "large":  # scores far beyond what exp can hold
        q, k, v = q * 300, k * 300, v * 1e4
    return q, k, v


def error(found, truth):
    return float((found.double() - truth.double()).norm() / truth.double().norm())


@pytest.mark.parametrize("kind", ["random", "peaked", "flat", "large"])
@pytest.mark.parametrize(("tokens", "brick"), [((4, 8, 6), (2, 4, 2)), ((5, 7, 6), (2, 4, 4))])
def test_tiled_and_its_lse_on_hard_inputs(kind, tokens, brick):
    g = brick_grid(tokens, brick)
    boxes = torch.tensor([[(1, 1, 1), g, (1, 2, 1)], [(2, 1, 2), (1, 1, 1), (1, 2, 2)]])
    for n_text in (0, 5):
        q, k, v = hard(kind, tokens, 3, n_text)
        call = (q, k, v, boxes, tokens, brick)
        truth, truth_lse = windowed(*call, "reference", lse=True)
        found, lse = windowed(*call, "tiled", lse=True)
        assert error(found, truth) < 1e-5 and lse.dtype == torch.float32
        assert float(((lse - truth_lse) / truth_lse.abs().clamp(min=1)).abs().max()) < 1e-5
        assert error(windowed(*call, "tiled"), truth) < 1e-5  # may take another path


def test_bfloat16_is_no_worse_than_dense_bfloat16_twice_over():
    tokens, brick = (4, 8, 6), (2, 4, 2)
    boxes = [(1, 1, 1), (2, 2, 2), (1, 2, 3)]
    q, k, v = (x.bfloat16() for x in hard("random", tokens, 3, 5))
    exact = windowed(*(x.double() for x in (q, k, v)), boxes, tokens, brick, "tiled")
    dense = F.scaled_dot_product_attention(q, k, v)
    limit = 2 * error(dense, F.scaled_dot_product_attention(*(x.double() for x in (q, k, v))))
    assert error(windowed(q, k, v, boxes, tokens, brick, "tiled"), exact) < limit


@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize(("tokens", "brick"), GRIDS)
def test_every_element_is_written(tokens, brick, lse, monkeypatch):
    """Fresh memory is poisoned: what nobody writes stays NaN."""
    q, k, v = qkv(tokens, 3, n_text=3)
    boxes = some_boxes(tokens, brick, 3)
    real_like, real = torch.empty_like, torch.empty
    monkeypatch.setattr(torch, "empty_like", lambda *a, **b: real_like(*a, **b).fill_(math.nan))
    monkeypatch.setattr(torch, "empty", lambda *a, **b: real(*a, **b).fill_(math.nan))
    found = windowed(q, k, v, boxes, tokens, brick, "tiled", lse=lse)
    for x in found if lse else (found,):
        assert torch.isfinite(x).all()


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_padding_has_no_lse_and_clips_have_windows_of_their_own(backend):
    tokens, brick, text = (4, 4, 6), (1, 2, 2), (2, 0)
    boxes = torch.tensor([[(1, 1, 1), (4, 2, 3)], [(2, 1, 2), (1, 2, 1)]])
    q, k, v = qkv(tokens, 2, n_text=4)
    out, lse = windowed(q, k, v, boxes, tokens, brick, backend, text, lse=True)
    for clip, n in enumerate(text):
        real = slice(math.prod(tokens) + n)
        one = [x[clip : clip + 1, :, real] for x in (q, k, v)]
        alone, alone_lse = windowed(*one, boxes[clip], tokens, brick, backend, lse=True)
        assert error(out[clip, :, real], alone[0]) < 1e-6
        assert error(lse[clip, :, real], alone_lse[0]) < 1e-6
        assert torch.isneginf(lse[clip, :, real.stop :]).all()
        assert not out[clip, :, real.stop :].any()


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_tokens_in_brick_order_stay_in_it(backend):
    tokens, brick = (3, 5, 7), (1, 2, 3)
    order = brick_order(tokens, brick, torch.device("cpu"))[0]
    q, k, v = qkv(tokens, 2, n_text=3).unbind()
    call = ([(1, 2, 1), (3, 1, 2)], tokens, brick, backend)
    truth = windowed(q, k, v, *call)
    found = windowed(*(reordered(x, order) for x in (q, k, v)), *call, ordered=True)
    assert torch.equal(found, reordered(truth, order))


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([(0, 1, 1)] * 2, r"window \(0, 1, 1\) is no box of the 4x2x3 brick grid"),
        ([(1, 1, 1), (4, 3, 3)], r"window \(4, 3, 3\)"),
        ([(1, 1, 1)], r"shape \(1, 3\) do not fit 2 clips of 2 heads"),
        (torch.ones(3, 2, 3), "do not fit"),
    ],
)
def test_a_plan_that_would_empty_a_row_is_refused(boxes, said):
    q, k, v = qkv((4, 4, 6), 2)
    with pytest.raises(UserError, match=said):
        windowed(q, k, v, boxes, (4, 4, 6), (1, 2, 2))


# -- the dispatcher ------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch):
    """The dispatcher as at start-up: nothing checked, and nothing that a test finds is kept."""
    monkeypatch.setattr(dispatch, "_why_not", functools.cache(dispatch._why_not.__wrapped__))


def stand_in(attend):
    return SimpleNamespace(
        IN_BRICKS=False, AUTO=("cpu",), unusable=lambda problem: None, window_attention=attend
    )


def dense(q, k, v, *rest):
    return F.scaled_dot_product_attention(q, k, v), None


def off_in_one_head(*args):
    out, lse = tiled.window_attention(*args)
    out[:, -1] = out[:, -1].roll(1, 1)
    return out, lse


def dense_on_whole_grids(q, k, v, problem, lse):
    """As a kernel whose path for full bricks ignores its lists."""
    if not problem.ragged:
        whole = torch.tensor(problem.grid, dtype=torch.int32).expand(problem.windows.shape)
        problem = replace(problem, windows=whole)
    return tiled.window_attention(q, k, v, problem, lse)


def wrong_lse(*args):
    out, lse = tiled.window_attention(*args)
    return out, lse if lse is None else 1.01 * lse


def silent(*args):
    raise AssertionError


def raising(*args):
    raise RuntimeError("no kernel image\nfor this device")


@pytest.mark.parametrize(
    ("attend", "said"),
    [
        (dense, "is off by"),
        (dense_on_whole_grids, "is off by"),
        (off_in_one_head, "is off by"),
        (wrong_lse, "is off by"),
        (silent, "AssertionError"),
        (raising, "RuntimeError: no kernel"),
    ],
)
def test_a_backend_that_is_wrong_here_is_not_used(attend, said, fresh, monkeypatch):
    """Upstream kernels return dense attention where they cannot do better, and say nothing."""
    broken, real = stand_in(attend), dispatch.module
    first = dispatch.FASTEST_FIRST[0]
    monkeypatch.setattr(dispatch, "module", lambda n: broken if n == first else real(n))
    q, k, v = qkv((4, 4, 6), 1)
    assert dispatch.choose(kind(q, (1, 2, 2))) == "tiled"
    with pytest.raises(UserError, match=said) as caught:
        windowed(q, k, v, [(1, 1, 1)], (4, 4, 6), (1, 2, 2), first)
    assert "attention=auto" in str(caught.value) and "\n" not in str(caught.value)


def test_a_backend_that_is_right_is_used_and_checked_once(fresh, monkeypatch):
    calls, real = [], dispatch.module

    def attend(*args):
        calls.append(1)
        return tiled.window_attention(*args)

    monkeypatch.setattr(dispatch, "FASTEST_FIRST", ("good", "tiled"))
    monkeypatch.setattr(dispatch, "module", lambda n: stand_in(attend) if n == "good" else real(n))
    q, k, v = qkv((4, 4, 6), 1)
    for _ in range(3):
        windowed(q, k, v, [(1, 1, 1)], (4, 4, 6), (1, 2, 2))
    assert len(calls) == 3 + 3  # a whole grid, once more with lse, and a ragged one


def test_where_boxes_are_many_and_tiny_one_masked_call_takes_their_place(monkeypatch):
    """And never where its mask would be large."""
    tokens, brick, box = (8, 4, 6), (1, 1, 1), (4, 2, 3)
    assert tiled.masked(box, tokens, brick, width=128)
    assert not tiled.masked((8, 4, 3), (8, 24, 40), (2, 4, 4), width=128)
    q, k, v = qkv(tokens, 2, n_text=3)
    both = []
    for limit in (0, 2048):
        monkeypatch.setattr(tiled, "MASKED", limit)
        both.append(windowed(q, k, v, [box, (1, 1, 1)], tokens, brick, "tiled"))
    assert error(*both) < 1e-6 and not torch.equal(*both)


def test_tiled_needs_a_tenth_more_memory_than_dense_attention_at_most():
    """At the paper's size, counted on tensors without data; a mask of all pairs would take 25 GiB."""
    tokens, brick, n_text = (30, 96, 160), (2, 8, 8), 256
    shape = (1, math.prod(tokens) + n_text, 24, 128)
    like = {"dtype": torch.bfloat16, "device": "meta"}
    q, k, v = (torch.empty(shape, **like).transpose(1, 2) for _ in range(3))
    boxes = candidates(0.5, list(DEFAULT_EXPONENTS), brick_grid(tokens, brick))
    table = torch.tensor([[boxes[i % 2 - 2] for i in range(24)]]).int()
    with tracing() as trace:
        of_backend(tiled, q, k, v, table, tokens, brick)
    dense = 4 * q.numel() * q.element_size()  # q, k, v and what comes out
    assert 3 / 4 * dense + trace.peak < 1.1 * dense
    pairs = trace.flops / (4 * 128 * 24)
    assert pairs == pytest.approx(0.5 * math.prod(tokens) ** 2, rel=0.02)
