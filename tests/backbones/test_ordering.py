"""Brick order (`backbones.ordering`): a forward does not notice it, and windows mean the same in it."""

import math
from types import SimpleNamespace

import pytest
import torch
from test_stock import state
from tiny_pipelines import BUILD, PROMPTS, relative

import s2flow.attention as attention
from s2flow.attention import dispatch, reference
from s2flow.attention.order import brick_offsets, brick_order, reordered
from s2flow.cascade import Cascade
from s2flow.grid import brick_grid, brick_of_token
from s2flow.methods import method

every_family = pytest.mark.parametrize("case", list(BUILD), indirect=True)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("tokens", "brick"), [((2, 4, 6), (1, 2, 4)), ((3, 5, 7), (2, 4, 3)), ((4, 4, 4), (1, 1, 1))]
)
def test_the_tokens_of_a_brick_stand_together_and_none_is_lost(tokens, brick):
    order, inverse = brick_order(tokens, brick, CPU)
    offsets = brick_offsets(tokens, brick, CPU).tolist()
    where = brick_of_token(tokens, brick)[order].tolist()
    g = brick_grid(tokens, brick)
    bricks = [[t, h, w] for t in range(g[0]) for h in range(g[1]) for w in range(g[2])]
    assert len(offsets) == len(bricks) + 1 and offsets[-1] == math.prod(tokens)
    for i, own in enumerate(bricks):
        stretch = where[offsets[i] : offsets[i + 1]]
        assert stretch and all(b == own for b in stretch)
    x = torch.randn(2, 3, math.prod(tokens) + 4, 5)  # text behind
    there = reordered(x, order)
    assert torch.equal(there[:, :, -4:], x[:, :, -4:])
    assert torch.equal(reordered(there, inverse), x)


@every_family
def test_a_forward_in_brick_order_is_the_same_forward(case, typed):
    """Velocity alike, and what attention sees are the same tokens in another place."""
    engine, z, condition = state(case, typed("method=cascade"), size="high_shape")
    router, tokens, brick = case.backbone.router, (2, 4, 6), (1, 2, 4)
    seen = {False: [], True: []}

    def observe(layer, q, k):
        seen[router.ordered].append((q.clone(), k.clone()))

    with router.observing(observe):
        before = case.backbone.velocity(z, 0.7, condition)
        with router.order.of(tokens, brick, "cpu"):
            after = case.backbone.velocity(z, 0.7, condition)
    assert not router.ordered
    assert relative(after, before) < 1e-5
    order = brick_order(tokens, brick, CPU)[0]
    assert not torch.equal(order, torch.arange(len(order)))
    for plain, bricked in zip(seen[False], seen[True], strict=True):
        for a, b in zip(plain, bricked, strict=True):
            assert relative(b, reordered(a, order)) < 1e-5


def in_bricks(calls):
    """The reference as a backend that takes its tokens in brick order, as kernels do."""

    def window_attention(q, k, v, problem):
        calls.append(q.shape)
        order, inverse = brick_order(problem.tokens, problem.brick, q.device)
        q, k, v = (reordered(x, inverse) for x in (q, k, v))
        return reordered(reference.window_attention(q, k, v, problem), order)

    return SimpleNamespace(IN_BRICKS=True, window_attention=window_attention)


@every_family
def test_the_hr_flow_is_permuted_once_a_forward_and_not_in_any_layer(case, typed, monkeypatch):
    words = ["attention=reference", "sparsity=0.5", "windows.dense_layers=[1]", "windows=cubes"]
    r = typed(*words)
    plain = method("s2flow").generate(Cascade(case.backbone, r, PROMPTS, [0, 1]))
    calls, permuted = [], []
    real = dispatch.module
    twin = in_bricks(calls)
    monkeypatch.setattr(dispatch, "module", lambda n: twin if n == "reference" else real(n))
    monkeypatch.setattr(attention, "reordered", lambda *a: permuted.append(1) or reordered(*a))
    made = method("s2flow").generate(Cascade(case.backbone, r, PROMPTS, [0, 1]))
    assert relative(made.latent, plain.latent) < 1e-4
    assert len(calls) >= 2 * (case.layers - 1) and not permuted
    assert made.reports[0]["attention"] == "reference"


@every_family
def test_a_released_backbone_leaves_no_hook(case):
    backbone = type(case.backbone)(case.name, case.backbone.pipeline)
    hooks = len(backbone.transformer.proj_out._forward_hooks)
    backbone.release()
    assert len(backbone.transformer.proj_out._forward_hooks) == hooks - 1
