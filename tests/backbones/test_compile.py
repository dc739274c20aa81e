"""torch.compile: one graph per latent shape, whatever step, windows, prompt or layer."""

import pytest
import torch
from tiny_pipelines import PROMPTS, relative
from torch._dynamo.testing import CompileCounterWithBackend

from s2flow.backbones.compiled import compile_backbone
from s2flow.backbones.routing import AttentionRouter
from s2flow.cascade import Cascade
from s2flow.errors import UserError
from s2flow.methods import method

GRAPHS = 3  # LR, HR and HR in brick order, of both prompts and every step


def opened(case):
    """A backbone of its own, of two layers: what is done to it stays."""
    pipeline = type(case.stock).from_pretrained(case.folder, dtype=torch.float32)
    if case.name == "wan":
        del pipeline.transformer.blocks[2:]
    else:
        del pipeline.transformer.transformer_blocks[1:]
        del pipeline.transformer.single_transformer_blocks[1:]
    return type(case.backbone)(case.name, pipeline)


def test_the_model_is_one_graph_that_no_plan_changes_and_follows_the_order(case, typed):
    """Two prompts of other lengths, one clip at a time, and tokens in brick order."""
    backbone, r = opened(case), typed("windows=coverage", "windows.target=0.5")

    def clips():
        found, plans = [], []
        for i, prompt in enumerate(PROMPTS):
            engine = Cascade(backbone, r, [prompt], [i])
            low = engine.low_flow()
            plans.append(engine.plan(low).boxes)
            found += [low.coverage, method("s2flow").generate(engine).latent]
        z = engine.noise(engine.high_shape, "low")
        with backbone.router.order.of((2, 4, 6), (1, 2, 4), "cpu"):
            ordered = backbone.velocity(z, 0.7, engine.condition)
        return [*found, backbone.velocity(z, 0.7, engine.condition), ordered], plans

    before, plans = clips()
    assert len({str(p[n].tolist()) for p in plans for n in (1, 2)}) > 1  # windows do change
    assert relative(before[-1], before[-2]) < 1e-5
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("eager")
    compile_backbone(backbone, graphs)
    after, same = clips()
    torch._dynamo.reset()
    assert all(relative(a, b) < 1e-5 for a, b in zip(after, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(same, plans, strict=True))
    assert graphs.frame_count == GRAPHS
    routed = [
        sum("s2flow.attend" in str(node.target) for node in graph.graph.nodes)
        for graph in graphs.graphs
    ]
    assert routed == [2] * GRAPHS


def one_velocity(case, backbone, typed):
    """(velocity of nothing but these weights, the processors of the routed layers)."""
    engine = Cascade(backbone, typed(), PROMPTS[:1], [0])
    z = engine.noise(engine.low_shape, "low")
    own = [p for p in backbone.transformer.attn_processors.values() if hasattr(p, "stock")]
    assert len(own) == backbone.router.layers
    return lambda: backbone.velocity(z, 0.7, engine.condition), own


def test_the_attention_backend_can_still_be_chosen(case, typed):
    """diffusers writes it on each layer's processor, which is ours around the stock one."""
    backbone = case.backbone
    velocity, own = one_velocity(case, backbone, typed)
    assert own[0].stock._attention_backend is None
    before = velocity()
    backbone.transformer.set_attention_backend("_native_math")
    assert {p.stock._attention_backend for p in own} == {"_native_math"}
    assert relative(velocity(), before) < 1e-5
    backbone.transformer.set_attention_backend("native")
    assert torch.equal(velocity(), before)
    backbone.transformer.reset_attention_backend()


def test_the_transformers_own_context_parallelism_is_refused(case, typed):
    velocity, (layer, *_) = one_velocity(case, case.backbone, typed)
    layer._parallel_config = object()
    assert layer.stock._parallel_config is layer._parallel_config
    try:
        with (
            case.backbone.router.replacing(lambda layer, q, k, v: None),
            pytest.raises(UserError, match="a ring never has a whole window.*context_parallel=2"),
        ):
            velocity()
    finally:
        layer._parallel_config = None


def test_a_module_without_the_attention_call_is_refused():
    with pytest.raises(RuntimeError, match="dispatch_attention_fn"):
        AttentionRouter(torch.nn, [])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("backbone=wan_1_3b offload=group", "offload=group works with hooks .* compile or off"),
        ("backbone=wan_14b offload=model", "offload=model works with hooks"),
        ("backbone=wan_1_3b fp8=true", "fp8=true works with hooks .* leave compile or fp8 out"),
        ("backbone=hunyuan_1_5", "hunyuan_1_5 sorts its text by masks, .*; leave compile out"),
    ],
)
def test_what_cannot_be_one_graph_is_refused(words, said, recipe):
    with pytest.raises(UserError, match=said) as error:
        recipe(*words.split(), "compile=true")
    assert "\n" not in str(error.value)
    recipe(*words.split())
