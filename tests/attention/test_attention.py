"""Window attention (Eq. 7): every backend is masked softmax attention, and masked means masked."""

import functools
import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from plain import kind, of_backend, off, qkv, windowed

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
grids = pytest.mark.parametrize(("tokens", "brick"), GRIDS)
backends = pytest.mark.parametrize("backend", ["tiled", "reference"])


def some_boxes(tokens, brick, count=5):
    """Different windows per head: a single brick, the whole grid, and some between."""
    every = list(itertools.product(*(range(1, n + 1) for n in brick_grid(tokens, brick))))
    picks = [0, len(every) - 1, *range(1, len(every) - 1, max(len(every) // 3, 1))]
    return [every[i % len(every)] for i in picks][:count]


@pytest.mark.parametrize("n_text", [0, 5])
@grids
def test_tiled_equals_reference(tokens, brick, n_text):
    boxes = some_boxes(tokens, brick)
    mixed = [*boxes, boxes[0]]  # heads of equal windows that are not neighbours
    for windows in (mixed, *([box] * 2 for box in boxes[:3])):
        q, k, v = qkv(tokens, len(windows), n_text)
        args = (q, k, v, windows, tokens, brick)
        found, truth = (windowed(*args, backend=b) for b in ("tiled", "reference"))
        assert found.shape == q.shape and found.dtype == q.dtype
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
        inside = [
            range(s := max(0, min(x - w // 2, n - w)), s + w)
            for x, w, n in zip(here, box, tokens, strict=True)
        ]
        keys = [
            j
            for j, key in enumerate(coordinates)
            if all(y in r for y, r in zip(key, inside, strict=True))
        ]
        assert len(keys) == math.prod(box) and i in keys
        A = (k[0, 0, keys] @ q[0, 0, i] / math.sqrt(q.shape[-1])).softmax(0)
        expected[i] = A @ v[0, 0, keys]
    found = windowed(q, k, v, [box], tokens, (1, 1, 1), backend)
    assert float((found[0, 0] - expected).abs().max()) < 1e-5


@backends
def test_text_attends_everything_and_is_attended_by_everything(backend):
    tokens, brick, n_text = (4, 4, 6), (1, 2, 2), 4
    q, k, v = qkv(tokens, 2, n_text)
    boxes = [(1, 1, 1), (2, 1, 2)]
    out = windowed(q, k, v, boxes, tokens, brick, backend)
    dense = F.scaled_dot_product_attention(q, k, v)
    assert float((out - dense)[:, :, -n_text:].abs().max()) < 1e-5
    for text in range(1, n_text + 1):  # every text value reaches every video query
        changed = v.clone()
        changed[:, :, -text] += 10
        moved = windowed(q, k, changed, boxes, tokens, brick, backend) - out
        assert float(moved.abs().amax(-1).min()) > 0


@pytest.mark.parametrize("backend", ["auto", "tiled", "reference"])
@grids
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
    for x, (clip, n) in itertools.product((k, v), enumerate(text)):
        x[clip, :, n_video + n :] = math.nan
    found = windowed(q, k, v, boxes, tokens, brick, backend, text)
    for clip, n in enumerate(text):
        assert float((found - truth)[clip, :, : n_video + n].abs().max()) < 1e-5
        assert not found[clip, :, n_video + n :].any()


def papers_literal_mask(q, k, v, boxes, tokens, brick):
    """Eq. 7 as printed: logits times a 0/1 mask."""
    M = torch.stack([window_mask(tokens, brick, b) for b in boxes]).float()
    return (M * (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])).softmax(-1) @ v


def influence_of_masked_keys(attend, tokens, brick):
    """Largest change of one query's output when keys and values outside its window change."""
    boxes = some_boxes(tokens, brick, 3)
    q, k, v = qkv(tokens, len(boxes))
    before = attend(q, k, v, boxes, tokens, brick)
    worst = 0.0
    for head, box in enumerate(boxes):
        M = window_mask(tokens, brick, box)
        for query in (0, len(M) // 2, len(M) - 1):
            k2, v2 = k.clone(), v.clone()
            k2[:, head, ~M[query]] *= -3
            v2[:, head, ~M[query]] += 100
            after = attend(q, k2, v2, boxes, tokens, brick)
            worst = max(worst, float((after - before)[:, head, query].abs().max()))
    return worst


@grids
@backends
def test_masked_keys_have_exactly_no_influence(backend, tokens, brick):
    attend = functools.partial(windowed, backend=backend)
    assert influence_of_masked_keys(attend, tokens, brick) == 0


def test_the_papers_literal_mask_lets_masked_keys_through():
    assert influence_of_masked_keys(papers_literal_mask, (4, 4, 6), (1, 2, 2)) > 1


@backends
def test_no_gradient_reaches_a_masked_key(backend):
    tokens, brick, box, query = (4, 4, 6), (1, 2, 2), (2, 1, 2), 40
    q, k, v = (x.requires_grad_() for x in qkv(tokens, 1, batch=1))
    windowed(q, k, v, [box], tokens, brick, backend)[0, 0, query].sum().backward()
    inside = window_mask(tokens, brick, box)[query]
    for x in (k, v):
        assert float(x.grad[0, 0, ~inside].abs().max()) == 0
        assert float(x.grad[0, 0, inside].abs().amax(-1).min()) > 0


def test_half_precision():
    """The reference computes in float32; tiled is no worse than a dense call twice over."""
    tokens, brick = (4, 8, 6), (2, 4, 2)
    call = ([(1, 1, 1), (2, 2, 2), (1, 2, 3)], tokens, brick)
    q, k, v = (x.bfloat16() for x in qkv(tokens, 3, 5))
    single, double = ([x.to(t) for x in (q, k, v)] for t in (torch.float32, torch.float64))
    exact = windowed(*single, *call, "reference").bfloat16()
    assert torch.equal(windowed(q, k, v, *call, "reference"), exact)
    dense = F.scaled_dot_product_attention(q, k, v)
    limit = 2 * off(dense, F.scaled_dot_product_attention(*double))
    found = windowed(q, k, v, *call, "tiled")
    assert found.dtype == torch.bfloat16 and off(found, windowed(*double, *call, "tiled")) < limit


def test_unknown_backend_says_what_to_type():
    q, k, v = qkv((2, 2, 2), 1)
    with pytest.raises(UserError, match=r"attention=flash.*tiled.*reference"):
        windowed(q, k, v, [(1, 1, 1)], (2, 2, 2), (1, 1, 1), "flash")


# -- what every backend must hold, here tiled ----------------------------------------------------


@pytest.mark.parametrize(
    ("q_scale", "k_scale", "v_scale"),
    [(1, 1, 1), (12, 3, 1), (0, 1, 1), (300, 300, 1e4)],
    ids=["random", "one key takes nearly all", "flat", "beyond what exp can hold"],
)
@pytest.mark.parametrize(("tokens", "brick"), [GRIDS[2], GRIDS[3]])
def test_tiled_on_hard_inputs(q_scale, k_scale, v_scale, tokens, brick, monkeypatch):
    g = brick_grid(tokens, brick)
    boxes = torch.tensor([[(1, 1, 1), g, (1, 2, 1)], [(2, 1, 2), (1, 1, 1), (1, 2, 2)]])
    for n_text in (0, 5):
        q, k, v = qkv(tokens, 3, n_text)
        call = (q * q_scale, k * k_scale, v * v_scale, boxes, tokens, brick)
        truth = windowed(*call, "reference")
        for limit in (2048, 0):  # one call under a mask, and views
            monkeypatch.setattr(tiled, "MASKED", limit)
            assert off(windowed(*call, "tiled"), truth) < 1e-5


@pytest.mark.parametrize("limit", [0, 2048])  # views, and one call under a mask
@grids
def test_every_element_is_written(tokens, brick, limit, monkeypatch):
    """Fresh memory is poisoned: what nobody writes stays NaN."""
    q, k, v = qkv(tokens, 3, n_text=3)
    boxes = some_boxes(tokens, brick, 3)
    real_like, real = torch.empty_like, torch.empty
    monkeypatch.setattr(torch, "empty_like", lambda *a, **b: real_like(*a, **b).fill_(math.nan))
    monkeypatch.setattr(torch, "empty", lambda *a, **b: real(*a, **b).fill_(math.nan))
    monkeypatch.setattr(tiled, "MASKED", limit)
    assert torch.isfinite(windowed(q, k, v, boxes, tokens, brick, "tiled")).all()


@backends
def test_clips_have_text_and_windows_of_their_own(backend):
    tokens, brick, text = (4, 4, 6), (1, 2, 2), (2, 0)
    boxes = torch.tensor([[(1, 1, 1), (4, 2, 3)], [(2, 1, 2), (1, 2, 1)]])
    q, k, v = qkv(tokens, 2, n_text=4)
    out = windowed(q, k, v, boxes, tokens, brick, backend, text)
    for clip, n in enumerate(text):
        real = slice(math.prod(tokens) + n)
        one = [x[clip : clip + 1, :, real] for x in (q, k, v)]
        alone = windowed(*one, boxes[clip], tokens, brick, backend)
        assert off(out[clip, :, real], alone[0]) < 1e-6
        assert not out[clip, :, real.stop :].any()


@backends
def test_tokens_in_brick_order_stay_in_it(backend):
    tokens, brick = (3, 5, 7), (1, 2, 3)
    order = brick_order(tokens, brick, torch.device("cpu"))[0]
    q, k, v = qkv(tokens, 2, n_text=3)
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
    return SimpleNamespace(IN_BRICKS=False, AUTO=("cpu",), window_attention=attend)


def dense(q, k, v, problem):
    return F.scaled_dot_product_attention(q, k, v)


def off_in_one_head(*args):
    out = tiled.window_attention(*args)
    out[:, -1] = out[:, -1].roll(1, 1)
    return out


def dense_where(q, k, v, problem, ragged):
    """As a kernel whose path for full bricks, or for ragged ones, ignores its lists."""
    if problem.ragged == ragged:
        whole = torch.tensor(problem.grid, dtype=torch.int32).expand(problem.windows.shape)
        problem = replace(problem, windows=whole)
    return tiled.window_attention(q, k, v, problem)


def not_a_number(*args):
    return tiled.window_attention(*args) * math.nan


def silent(*args):
    raise AssertionError


def raising(*args):
    raise RuntimeError("no kernel image\nfor this device")


@pytest.mark.parametrize(
    ("attend", "said"),
    [
        *((f, "is off by") for f in (dense, off_in_one_head)),
        *((functools.partial(dense_where, ragged=x), "is off by") for x in (False, True)),
        (not_a_number, "is off by inf"),
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
    good = stand_in(lambda *args: calls.append(1) or tiled.window_attention(*args))
    monkeypatch.setattr(dispatch, "FASTEST_FIRST", ("good", "tiled"))
    monkeypatch.setattr(dispatch, "module", lambda n: good if n == "good" else real(n))
    q, k, v = qkv((4, 4, 6), 1)
    for _ in range(3):
        windowed(q, k, v, [(1, 1, 1)], (4, 4, 6), (1, 2, 2))
    assert len(calls) == 3 + 2  # a whole grid and a ragged one


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
    assert off(*both) < 1e-6 and not torch.equal(*both)


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
