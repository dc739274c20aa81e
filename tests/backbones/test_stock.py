"""Every real family against diffusers' own pipelines, on tiny complete checkpoints."""

import sys

import pytest
import torch
import torch.nn.functional as F
from plain import coverage_exact, coverage_of_all_boxes, windowed
from tiny_pipelines import BUILD, PROMPTS, OurGrid, relative

from s2flow.cascade import Cascade
from s2flow.coverage import attention_rows, sample_rows
from s2flow.flow import sigma_grid
from s2flow.grid import window_mask
from s2flow.methods import method
from s2flow.windows import candidates, choose

FRAMES, STEPS = 5, 3
pytestmark = pytest.mark.parametrize("case", list(BUILD), indirect=True)


def run_stock(case, r, z, prompts, own_grid=False, **options):
    """diffusers' pipeline on our noise and noise levels."""
    if case.name != "hunyuan":
        options["negative_prompt"] = [r.negative_prompt] * len(prompts)
    if case.name == "hunyuan_1_5":
        case.stock.guider = case.stock.guider.new(guidance_scale=r.guidance)
    else:
        options["guidance_scale"] = r.guidance
    if r.guidance_2 is not None:
        options["guidance_scale_2"] = r.guidance_2
    height, width = (n * case.backbone.scale_s for n in z.shape[-2:])
    size = {"height": height, "width": width, "num_frames": FRAMES}
    options |= size | {"num_inference_steps": r.steps, "latents": z}
    with pytest.MonkeyPatch.context() as patch:
        if not own_grid:
            grid = OurGrid.of(case.stock.scheduler, r.steps, r.shift)
            patch.setattr(case.stock, "scheduler", grid)
        return case.stock(prompt=prompts, **options).frames


@pytest.mark.parametrize("batch", [1, 2])
def test_native_equals_the_stock_pipeline(case, typed, batch):
    """Order 1, full attention, no hand-off: the same latent and the same video as diffusers makes."""
    r = typed("method=native", "seed=0" if case.name == "hunyuan" else "negative_prompt=ball")
    prompts = PROMPTS[:batch]
    engine = Cascade(case.backbone, r, prompts, range(batch))
    z = engine.noise(engine.high_shape, "high")
    ours = method("native").generate(engine)
    latent = run_stock(case, r, z, prompts, output_type="latent")
    assert ours.latent.shape == latent.shape and ours.latent.dtype == latent.dtype
    assert relative(ours.latent, latent) < 1e-5
    video = run_stock(case, r, z, prompts, output_type="pt").movedim(2, -1)
    assert ours.video.shape == video.shape == (batch, FRAMES, *case.high, 3)
    assert float((ours.video - video).abs().max()) < 1e-5
    # the comparison sees guidance and text
    before = case.backbone.velocity(z, 1.0, engine.condition)
    for guidance, last in ((r.guidance + 0.5, prompts[-1]), (r.guidance, "a green ball")):
        other = typed("method=native", f"guidance={guidance}")
        condition = Cascade(case.backbone, other, [*prompts[:-1], last], range(batch)).condition
        assert relative(case.backbone.velocity(z, 1.0, condition), before) > 1e-4


def test_the_schedule_of_hunyuan_video_is_the_checkpoints_own(case, typed):
    """Nothing of ours in the stock pipeline: its shift, its scheduler, its noise levels."""
    if not case.joint:
        pytest.skip("WanPipeline shifts its grid twice")
    r = typed("method=native")
    engine = Cascade(case.backbone, r, PROMPTS[:1], [0])
    z = engine.noise(engine.high_shape, "high")
    latent = run_stock(case, r, z, PROMPTS[:1], output_type="latent", own_grid=True)
    scheduler = case.stock.scheduler
    assert scheduler.config.shift == r.shift == {"hunyuan": 7, "hunyuan_1_5": 9}[case.name]
    assert float((scheduler.sigmas - sigma_grid(STEPS, r.shift).flip(0)).abs().max()) < 1e-6
    assert relative(method("native").generate(engine).latent, latent) < 1e-4


def test_encoding_is_the_mode_in_the_scale_of_the_flow(case):
    """What the stock decoder undoes: scale and range conventions of both directions match."""
    config = case.stock.vae.config
    video = torch.rand(1, FRAMES, *case.low, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw = case.stock.vae.encode(video.movedim(-1, 1) * 2 - 1).latent_dist.mode()
    mean, std = 0.0, 1 / (config.scaling_factor if case.joint else 1)
    if not case.joint:
        scale = config.latents_mean, config.latents_std
        mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in scale)
    assert relative(case.backbone.encode(video), (raw - mean) / std) < 1e-5


# -- the router -------------------------------------------------------------------------------


def state(case, r, prompts=PROMPTS, size="low_shape"):
    engine = Cascade(case.backbone, r, prompts, range(len(prompts)))
    return engine, engine.noise(getattr(engine, size), "low"), engine.condition


@pytest.mark.parametrize("batch", [1, 2])
def test_capture_is_bitwise_transparent(case, typed, batch):
    engine, z, condition = state(case, typed("method=cascade"), PROMPTS[:batch])
    router, text = case.backbone.router, condition.positive
    before = case.backbone.velocity(z, 0.7, condition)
    seen = []
    with router.observing(lambda layer, q, k: seen.append((layer, q.shape, k.shape))):
        assert torch.equal(case.backbone.velocity(z, 0.7, condition), before)
    tokens = 2 * 2 * 3
    if case.joint:
        tokens += text.states.shape[1] + (text.glyphs.shape[1] if case.name[-1] == "5" else 0)
    shape = (batch, 2, tokens, case.width)
    assert seen == [(layer, shape, shape) for layer in range(case.layers)]
    assert router.layers == case.layers

    def broken(layer, q, k):
        raise KeyError("observer")

    with pytest.raises(KeyError), router.observing(broken):
        case.backbone.velocity(z, 0.7, condition)
    assert torch.equal(case.backbone.velocity(z, 0.7, condition), before)  # not left armed


@torch.no_grad()
def test_the_router_cannot_be_noticed_by_the_stock_model(case, typed, monkeypatch):
    """On what the stock pipeline feeds its model, padding and mask included: every bit is the same.

    HunyuanVideo-1.5's own attention is replaced by one without its mask, and equal to rounding.
    """
    r, fed = typed("method=native"), []
    engine = Cascade(case.backbone, r, PROMPTS, [0, 1])
    keep = case.stock.transformer.register_forward_pre_hook(
        lambda model, args, kwargs: fed.append(kwargs), with_kwargs=True
    )
    run_stock(case, r, engine.noise(engine.low_shape, "low"), PROMPTS, output_type="latent")
    keep.remove()
    fresh = case.pipeline.from_pretrained(case.folder, dtype=torch.float32)
    module = sys.modules[type(fresh.transformer).__module__]
    with monkeypatch.context() as patch:  # as before any router was made
        patch.setattr(module, "dispatch_attention_fn", module._stock_dispatch)
        patch.delattr(module, "_stock_dispatch")
        before = [fresh.transformer(**kwargs)[0] for kwargs in fed]
        router = type(case.backbone)(case.name, fresh).router
        if case.name != "hunyuan_1_5":
            routed = [fresh.transformer(**kwargs)[0] for kwargs in fed]
            assert all(torch.equal(a, b) for a, b in zip(routed, before, strict=True))
    if case.name == "hunyuan_1_5":
        maskless = [fresh.transformer(**kwargs)[0] for kwargs in fed]
        assert all(relative(a, b) < 1e-5 for a, b in zip(maskless, before, strict=True))
        before = maskless
    for observer in (None, lambda layer, q, k: None):
        with router.observing(observer), router.replacing(lambda layer, q, k, v: None):
            after = [fresh.transformer(**kwargs)[0] for kwargs in fed]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    with router.replacing(lambda layer, q, k, v: torch.zeros_like(q)):
        assert not torch.equal(fresh.transformer(**fed[0])[0], before[0])


@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_a_full_window_through_the_bricks_equals_the_models_own_attention(case, typed, backend):
    engine, z, condition = state(case, typed("method=cascade"))
    router, tokens, brick = case.backbone.router, (2, 2, 3), (1, 2, 2)

    def replace(layer, q, k, v):
        return windowed(q, k, v, [(2, 1, 2)] * 2, tokens, brick, backend, router.text)

    before = case.backbone.velocity(z, 0.7, condition)
    with router.replacing(replace):
        assert relative(case.backbone.velocity(z, 0.7, condition), before) < 1e-5


def masked_attention(router, boxes, tokens, brick, factor=1.0):
    """The same windows as one dense call with a mask over [video, text], padding included."""

    def replace(layer, q, k, v):
        n_video = tokens[0] * tokens[1] * tokens[2]
        M = torch.ones(len(q), q.shape[1], q.shape[2], k.shape[2], dtype=torch.bool)
        for head, box in enumerate(boxes):
            M[:, head, :n_video, :n_video] = window_mask(tokens, brick, box)
        for clip, n in enumerate(router.text or ()):
            M[clip, ..., n_video + n :] = False
        return F.scaled_dot_product_attention(q, k, v, M, scale=factor / q.shape[-1] ** 0.5)

    return replace


@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_partial_windows_equal_masked_attention(case, typed, backend):
    """Bricks of one token, other windows per head, joint text, prompts of different lengths."""
    engine, z, condition = state(case, typed("method=cascade"), size="high_shape")
    router, tokens, brick = case.backbone.router, (2, 4, 6), (1, 1, 1)
    boxes, padded = [(1, 3, 2), (2, 1, 5)], []

    def replace(layer, q, k, v):
        padded.append(router.text is not None)
        return windowed(q, k, v, boxes, tokens, brick, backend, router.text)

    dense = case.backbone.velocity(z, 0.7, condition)
    with router.replacing(masked_attention(router, boxes, tokens, brick)):
        truth = case.backbone.velocity(z, 0.7, condition)
    with router.replacing(replace):
        found = case.backbone.velocity(z, 0.7, condition)
    assert any(padded) == case.joint
    assert relative(found, truth) < 1e-5
    assert relative(found, dense) > 1e-3


def test_a_batch_equals_its_clips_one_by_one(case, typed):
    """The whole method: coverage, plan, hand-off, windows, with text of different lengths."""
    r = typed("sparsity=0.5", "order=2")
    both = Cascade(case.backbone, r, PROMPTS, [3, 4])
    low, made = both.low_flow(), method("s2flow").generate(both)
    for i in range(2):
        one = Cascade(case.backbone, r, PROMPTS[i : i + 1], [3 + i])
        flow = one.low_flow()
        assert float((flow.coverage[:, :, 0] - low.coverage[:, :, i]).abs().max()) < 1e-5
        alone = method("s2flow").generate(one)
        assert alone.reports[0]["window_histogram"] == made.reports[i]["window_histogram"]
        assert relative(alone.latent, made.latent[i : i + 1]) < 1e-5
        assert float((alone.video - made.video[i : i + 1]).abs().max()) < 1e-5


def test_windows_reach_every_layer(case, typed):
    engine = Cascade(case.backbone, typed("sparsity=0.25", "attention=tiled"), PROMPTS[:1], [0])
    low = engine.low_flow()
    plan = engine.plan(low)
    assert plan.boxes.shape[1] == case.backbone.router.layers
    density = plan.report(range(1, engine.n_from + 1), 0)["density"]
    assert density and all(abs(f - 0.25) < 0.01 for f in density.values())
    z, replaced = engine.hand_off(low), set()
    dense = case.backbone.velocity(z, 0.5, engine.condition)
    for layer in range(case.backbone.router.layers):

        def only(at, q, k, v, layer=layer):
            if at != layer:
                return None
            replaced.add(at)
            boxes = [tuple(b) for b in plan.boxes[1, at, 0].tolist()]
            return windowed(q, k, v, boxes, plan.tokens, plan.brick)

        with case.backbone.router.replacing(only):
            assert relative(case.backbone.velocity(z, 0.5, engine.condition), dense) > 1e-4
    assert replaced == set(range(case.backbone.router.layers))


def test_coverage_is_taken_over_video_keys_of_the_whole_softmax(case, typed):
    """Eq. 8 from the complete attention map, text in the softmax and out of the sums."""
    engine, z, condition = state(case, typed("method=cascade"), PROMPTS[:1], "high_shape")
    tokens, n = (2, 4, 6), 48
    boxes = candidates(0.25, typed().windows.exponents, tokens)
    sampled, exact = [], []

    def observe(layer, q, k):
        A = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)[..., :n, :n]
        r = torch.zeros(*A.shape[:2], *tokens)
        for a, b, c in boxes:
            r[..., a - 1, b - 1, c - 1] = coverage_exact(A, tokens, (1, 1, 1), (a, b, c))
        exact.append(r)
        for count in (128, 36):  # 128, the default, is every row of this grid
            rows = sample_rows(n, count, seed=layer)
            found = coverage_of_all_boxes(attention_rows(q, k, rows, n), rows, tokens, (1, 1, 1))
            sampled.append(found)

    with case.backbone.router.observing(observe):
        case.backbone.velocity(z, 0.7, condition)
    for whole, some, truth in zip(sampled[::2], sampled[1::2], exact, strict=True):
        known = truth > 0
        assert float((whole - truth)[known].abs().max()) < 1e-5
        best = choose(truth, boxes)
        assert torch.equal(choose(whole, boxes), best)
        # an untrained model's attention is nearly even: another choice may win by a hair, no more
        lost = at(truth, best) - at(truth, choose(some, boxes))
        assert 0 <= float(lost.max()) < 0.02


def at(coverage, boxes):
    """Coverage of one box per clip and head."""
    rows = zip(coverage.flatten(0, 1), boxes.flatten(0, 1).tolist(), strict=True)
    return torch.stack([r[a - 1, b - 1, c - 1] for r, (a, b, c) in rows])
