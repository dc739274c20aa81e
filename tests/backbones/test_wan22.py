"""Wan 2.2: two experts that take turns by noise level, and the 5B's timestep per token."""

import contextlib

import pytest
import torch
from test_stock import run_stock
from tiny_pipelines import PROMPTS, relative

from s2flow.backbones.wan import WanBackbone
from s2flow.cascade import Cascade
from s2flow.errors import UserError
from s2flow.methods import method

both_experts = pytest.mark.parametrize("case", ["wan_2_2_14b"], indirect=True)


@contextlib.contextmanager
def calls(backbone):
    """Which expert every forward of a backbone takes, by noise level: [(sigma, 1 or 2), ...]."""
    seen, hooks = [], []
    for number, model in ((1, backbone.transformer), (2, backbone.transformer_2)):

        def note(m, args, kwargs, number=number):
            seen.append((float(kwargs["timestep"].flatten()[0]) / 1000, number))

        hooks.append(model.register_forward_pre_hook(note, with_kwargs=True))
    yield seen
    for hook in hooks:
        hook.remove()


@both_experts
@pytest.mark.parametrize("shift", [12.0, 5.0, 1.0])
def test_experts_change_at_the_boundary_as_in_the_stock_pipeline(case, typed, shift):
    """Also for a noise level on the boundary itself, and where the second expert has most steps."""
    r = typed("method=native", f"shift={shift}", "steps=8", "t_i=4")
    engine = Cascade(case.backbone, r, PROMPTS[:1], [0])
    z = engine.noise((16, 2, 4, 6), "low")
    with calls(case.stock) as stock:
        run_stock(case, r, z, PROMPTS[:1], output_type="latent")
    condition = case.backbone.encode_prompt(PROMPTS[:1], "", 1.0)
    with calls(case.backbone) as seen:
        for sigma in engine.sigma.flip(0).tolist()[:-1]:
            case.backbone.velocity(z, sigma, condition)
    # guided: two passes a step
    assert [expert for _, expert in seen] == [expert for _, expert in stock[::2]]
    assert {expert for _, expert in seen} == {1, 2}
    if shift == 1.0:
        # s = 7/8 stands on the boundary, and t >= boundary is the stock pipeline's rule
        assert (0.875, 1) in seen


@both_experts
def test_each_expert_has_its_own_guidance(case, typed):
    r = typed("method=native", "guidance=5", "guidance_2=2")
    assert r.guidances == (5.0, 2.0)
    assert r.low_identity() != typed("guidance=5", "guidance_2=3").low_identity()
    engine = Cascade(case.backbone, r, PROMPTS[:1], [0])
    z = engine.noise(engine.high_shape, "high")
    latent = run_stock(case, r, z, PROMPTS[:1], output_type="latent")
    assert relative(method("native").generate(engine).latent, latent) < 1e-5
    one = Cascade(case.backbone, typed("guidance=5", "guidance_2=5"), PROMPTS[:1], [0]).condition
    for sigma, same in ((0.9, True), (0.5, False)):
        v, w = (case.backbone.velocity(z, sigma, c) for c in (engine.condition, one))
        assert torch.equal(v, w) == same


@both_experts
@pytest.mark.parametrize("words", [("guidance=1",), ("guidance=5", "guidance_2=1")])
def test_guidance_one_is_what_it_is_in_the_stock_pipeline(case, typed, words):
    r = typed("method=native", "negative_prompt=ball", *words)
    engine = Cascade(case.backbone, r, PROMPTS[:1], [0])
    z = engine.noise(engine.low_shape, "low")
    latent = run_stock(case, r, z, PROMPTS[:1], output_type="latent")
    assert relative(engine.high_flow(z, r.steps).z[0], latent) < 1e-5


@both_experts
def test_the_plan_of_a_step_is_of_the_expert_of_that_step(case, typed):
    """LR coverage and HR windows of step n meet in the same expert; numbering does not double."""
    r = typed("sparsity=0.5", "attention=tiled", "t_i=3")
    engine = Cascade(case.backbone, r, PROMPTS[:1], [0])
    with calls(case.backbone) as seen:
        low = engine.low_flow()
        of_lr = dict(seen)
        seen.clear()
        plan = engine.plan(low)
        assert low.coverage.shape[1] == plan.boxes.shape[1] == case.backbone.router.layers == 3
        made = method("s2flow").generate(engine)
    of_hr = dict(seen)
    assert torch.isfinite(made.latent).all()
    assert of_hr and all(of_lr[sigma] == expert for sigma, expert in of_hr.items())
    assert set(of_hr.values()) == {1, 2}
    assert all(0.4 < f < 0.6 for f in made.reports[0]["density"].values())


@both_experts
@pytest.mark.parametrize("sigma", [0.95, 0.5])
def test_windows_reach_every_layer_of_either_expert(case, typed, sigma):
    engine = Cascade(case.backbone, typed("method=cascade"), PROMPTS[:1], [0])
    z, router = engine.noise(engine.low_shape, "low"), case.backbone.router
    dense = case.backbone.velocity(z, sigma, engine.condition)
    for layer in range(router.layers):
        with router.replacing(lambda at, q, k, v, layer=layer: v * 0 if at == layer else None):
            assert relative(case.backbone.velocity(z, sigma, engine.condition), dense) > 1e-3


@both_experts
def test_experts_of_different_depth_are_refused(case):
    fewer = case.pipeline.from_pretrained(case.folder)
    fewer.transformer_2.blocks = fewer.transformer_2.blocks[:2]
    with pytest.raises(UserError, match="3 and 2 layers"):
        WanBackbone("x", fewer)


@pytest.mark.parametrize("case", ["wan_2_2_5b"], indirect=True)
def test_one_timestep_per_clip_says_what_one_per_token_says(case):
    """The stock pipeline feeds the 5B one per token, all equal: the same to rounding."""
    assert case.stock.config.expand_timesteps
    z = torch.randn(2, 8, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    condition = case.backbone.encode_prompt(PROMPTS, "", 1.0)
    with torch.no_grad():
        stock = case.stock.transformer(
            z, torch.full((2, 2 * 2 * 3), 700.0), condition.positive, return_dict=False
        )[0]
    assert relative(case.backbone.velocity(z, 0.7, condition), stock) < 1e-5
    assert case.backbone.latent_shape(*case.low, 5) == (8, 2, 4, 6)
    assert case.backbone.multiple == 32
