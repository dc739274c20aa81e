"""torch.compile: one graph per latent shape, whatever step, windows, prompt or layer."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from two_ranks import PROMPTS, recipe

from s2flow.backbones.compiled import compile_backbone
from s2flow.cascade import Cascade
from s2flow.errors import UserError
from s2flow.methods import method


def opened(case):
    """A backbone of its own, of two layers: what is done to it stays."""
    pipeline = type(case.stock).from_pretrained(case.folder, dtype=torch.float32)
    if case.name == "wan":
        del pipeline.transformer.blocks[2:]
    else:
        del pipeline.transformer.transformer_blocks[1:]
        del pipeline.transformer.single_transformer_blocks[1:]
    return type(case.backbone)(case.name, pipeline)


@pytest.fixture
def clips(case):
    """clips(): latents and coverage of two prompts of other lengths, one clip at a time."""
    backbone = opened(case)
    r = recipe(case.name, "windows.target=0.5")

    def make():
        found, plans = [], []
        for i, prompt in enumerate(PROMPTS):
            engine = Cascade(backbone, r, [prompt], [i])
            low = engine.low_flow()
            plans.append(engine.plan(low).boxes)
            found += [low.coverage, method("s2flow").generate(engine).latent]
        return found, plans

    make.backbone = backbone
    yield make
    torch._dynamo.reset()


def test_the_model_is_one_graph_that_no_plan_changes(clips, case):
    before, plans = clips()
    assert len({str(p[n].tolist()) for p in plans for n in (1, 2)}) > 1  # windows do change
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("eager")
    compile_backbone(clips.backbone, graphs)
    after, same = clips()
    for a, b in zip(after, before, strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < 1e-5
    assert all(torch.equal(a, b) for a, b in zip(same, plans, strict=True))
    assert graphs.frame_count == 2  # LR and HR, of both prompts and every step
    routed = [
        sum("s2flow.attend" in str(node.target) for node in graph.graph.nodes)
        for graph in graphs.graphs
    ]
    assert routed == [2, 2]


def test_the_attention_backend_can_still_be_chosen(case):
    """diffusers writes it on each layer's processor, which is ours around the stock one."""
    backbone = opened(case)
    own = [p for p in backbone.transformer.attn_processors.values() if hasattr(p, "stock")]
    assert len(own) == backbone.router.layers and own[0].stock._attention_backend is None
    engine = Cascade(backbone, recipe(case.name), PROMPTS[:1], [0])
    z = engine.noise(engine.low_shape, "low")
    before = backbone.velocity(z, 0.7, engine.condition)
    backbone.transformer.set_attention_backend("_native_math")
    assert {p.stock._attention_backend for p in own} == {"_native_math"}
    after = backbone.velocity(z, 0.7, engine.condition)
    assert float((after - before).abs().max() / before.abs().max()) < 1e-5
    backbone.transformer.set_attention_backend("native")
    assert torch.equal(backbone.velocity(z, 0.7, engine.condition), before)


def test_the_transformers_own_context_parallelism_is_refused(case):
    backbone = case.backbone
    engine = Cascade(backbone, recipe(case.name), PROMPTS[:1], [0])
    z = engine.noise(engine.low_shape, "low")
    own = backbone.transformer.attn_processors.values()
    layer = next(p for p in own if hasattr(p, "stock"))
    layer._parallel_config = object()
    assert layer.stock._parallel_config is layer._parallel_config
    try:
        with (
            backbone.router.replacing(lambda layer, q, k, v: None),
            pytest.raises(UserError, match="a ring never has a whole window.*context_parallel=2"),
        ):
            backbone.velocity(z, 0.7, engine.condition)
    finally:
        layer._parallel_config = None


@pytest.fixture
def typed(request):
    """typed("fp8=true", ...): the recipe of these words, or a refusal."""
    return request.getfixturevalue("recipe")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "backbone=wan_1_3b offload=group",
            "offload=group works with hooks .* leave compile or off",
        ),
        ("backbone=wan_14b offload=model", "offload=model works with hooks"),
        ("backbone=wan_1_3b fp8=true", "fp8=true works with hooks .* leave compile or fp8 out"),
        ("backbone=hunyuan_1_5", "hunyuan_1_5 sorts its text by masks, .*; leave compile out"),
    ],
)
def test_what_cannot_be_one_graph_is_refused(words, said, typed):
    with pytest.raises(UserError, match=said) as error:
        typed(*words.split(), "compile=true")
    assert "\n" not in str(error.value)
    typed(*words.split())
