"""FlexAttention (attention/flex.py) on a CPU: really compiled, against the reference.

Two graphs of float32 and one of bfloat16, 10 to 20 seconds each where they are compiled anew.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from plain import kind, of_backend, off, qkv, windowed
from torch._dynamo.utils import counters

from s2flow.attention import dispatch, flex
from s2flow.errors import UserError
from s2flow.grid import window_mask

BRICK = (2, 4, 4)
GRIDS = [(4, 8, 12), (6, 12, 8), (5, 7, 10)]  # the last is ragged on every axis
WINDOWS = [(1, 1, 1), (2, 1, 2), (1, 2, 1), (2, 2, 2), (2, 1, 1), (1, 1, 2), (1, 2, 2)]
CPU = torch.device("cpu")
Q = kind(torch.empty(1, 1, 1, 16), BRICK)

usable = pytest.mark.skipif(flex.unusable(Q) is not None, reason="needs x86 with AVX2")


def both(q, k, v, boxes, tokens, text=None):
    """Of flex and of the reference."""
    args = (q, k, v, torch.tensor(boxes), tokens, BRICK)
    return [windowed(*args, backend, text) for backend in ("flex", "reference")]


@usable
@pytest.mark.parametrize("text", [None, (0, 0), (40, 40), (3, 40)])
@pytest.mark.parametrize("tokens", GRIDS)
def test_flex_equals_reference(tokens, text):
    boxes = [[*WINDOWS[:3], WINDOWS[0]], [*WINDOWS[2:5], WINDOWS[2]]]  # each clip its own
    q, k, v = qkv(tokens, 4, max(text or [0]))
    for clip, n in enumerate(text or ()):
        for x in (q, k, v):
            x[clip, :, math.prod(tokens) + n :] = math.nan
    assert off(*both(q, k, v, boxes, tokens, text)) < 1e-6  # 0 at padding in both


@usable
@pytest.mark.parametrize("scale", [0.0, 1e-3, 30.0, 300.0])
def test_flat_and_peaked_attention_and_large_values(scale):
    tokens = GRIDS[2]
    q, k, v = qkv(tokens, 3, 7, scale=scale)
    assert off(*both(q, k, 1e4 * v, WINDOWS[1:4], tokens)) < 1e-5


@usable
def test_masked_keys_have_exactly_no_influence():
    """On a ragged grid, with text: neither keys outside the window nor the room left in bricks."""
    tokens, box = GRIDS[2], (1, 1, 2)
    q, k, v = qkv(tokens, 2, 7)
    before, _ = both(q, k, v, [box] * 2, tokens)
    for query in (0, 171, 349):
        outside = (~window_mask(tokens, BRICK, box, torch.tensor([query]))[0]).nonzero()[:, 0]
        k2, v2 = k.clone(), v.clone()
        k2[:, :, outside] *= -3
        v2[:, :, outside] += 100
        after, _ = both(q, k2, v2, [box] * 2, tokens)
        assert torch.equal(after[:, :, query], before[:, :, query])


@usable
def test_bfloat16_is_within_twice_the_error_of_dense_bfloat16():
    tokens = GRIDS[0]
    q, k, v = (x.bfloat16() for x in qkv(tokens, 2, 7))
    whole = [(2, 2, 3)] * 2
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    dense = off(F.scaled_dot_product_attention(q, k, v), exact)
    assert off(both(q, k, v, whole, tokens)[0], exact) < 2 * dense
    out, truth = both(q, k, v, WINDOWS[1:3], tokens)
    assert out.dtype == torch.bfloat16 and off(out, truth) < 2 * dense


@usable
def test_a_plan_of_seven_windows_on_three_grids_makes_two_graphs():
    """One for a window that one head has, one for windows that several share."""
    assert dispatch.why_not("flex", Q) is None  # its graph is not ours
    flex._compiled.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    rest = itertools.cycle(WINDOWS)
    plans = [[w] * 6 for w in WINDOWS]  # groups of one size
    plans += [[next(rest) for _ in range(6 + i)] for i in range(4)]  # of 1, 2 and other sizes
    for i, boxes in enumerate(plans):
        tokens, n_text, batch = GRIDS[i % 3], (0, 7, 33, 64)[i % 4], 1 + i % 2
        x = qkv(tokens, len(boxes), n_text, batch, seed=i)
        assert off(*both(*x, boxes, tokens)) < 1e-6
    with torch.inference_mode():
        both(*qkv(GRIDS[0], 3), WINDOWS[:3], GRIDS[0])
    assert counters["stats"]["unique_graphs"] == 2


@usable
def test_the_self_check_refuses_flex_that_is_not_compiled(monkeypatch):
    """Eager flex ignores block lists: dense attention, and not a word."""
    monkeypatch.setattr(flex, "_compiled", lambda: flex._attend)
    tokens = GRIDS[0]
    q, k, v = qkv(tokens, 2)
    args = (torch.tensor([[(1, 1, 1)] * 2] * 2).int(), tokens, BRICK)
    silent = of_backend(flex, q, k, v, *args)
    assert off(silent, F.scaled_dot_product_attention(q, k, v)) < 1e-6
    assert dispatch.self_check("flex", CPU, torch.float32, 16, BRICK) > 0.1
    uncached = dispatch._why_not.__wrapped__
    assert "self-check is off by" in uncached("flex", CPU, torch.float32, 16, BRICK)


@usable
def test_inside_an_opaque_node_of_a_compiled_graph():
    """As `s2flow::attend` calls it: eagerly, when the compiled model runs."""

    @torch.library.custom_op("s2flow_tests::flex", mutates_args=())
    def node(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return windowed(q, k, v, WINDOWS[1:3], GRIDS[0], BRICK, "flex")

    node.register_fake(lambda q, k, v: torch.empty_like(q))
    q, k, v = qkv(GRIDS[0], 2)
    model = torch.compile(
        lambda q, k, v: node(2 * q, k, v) + 1, backend="aot_eager", fullgraph=True
    )
    truth = windowed(2 * q, k, v, WINDOWS[1:3], GRIDS[0], BRICK, "reference")
    assert off(model(q, k, v) - 1, truth) < 1e-6


def test_auto_on_a_cpu_compiles_nothing(monkeypatch):
    monkeypatch.setattr(flex, "_compiled", lambda: pytest.fail("compiled"))
    assert dispatch.choose(kind(torch.empty(1, 1, 1, 16), BRICK, GRIDS[0])) == "tiled"


def test_what_it_cannot_take_is_one_clear_line():
    q = torch.empty(1, 1, 1, 16, device="meta")
    assert "never tried on meta" in flex.unusable(kind(q, BRICK))
    q, k, v = (x.double() for x in qkv(GRIDS[0], 1))
    said = "attention=flex cannot be used: .* not torch.float64; type attention=auto"
    with pytest.raises(UserError, match=said):
        windowed(q, k, v, WINDOWS[:1], GRIDS[0], BRICK, "flex")


def test_tiles_divide_bricks():
    tiles = [flex.tile(n) for n in (1, 16, 48, 64, 100, 128, 384, 512)]
    assert tiles == [1, 16, 16, 64, 4, 128, 128, 128]
