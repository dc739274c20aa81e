"""Our loop against diffusers' own `WanPipeline`, and a router that cannot be noticed."""

import shutil

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from diffusers.models.transformers import transformer_wan

from s2flow.backbones.routing import AttentionRouter
from s2flow.cascade import Cascade
from s2flow.embedded import backbone as tiny
from s2flow.embedded.text import TEXT_LENGTH
from s2flow.embedded.world import MICRO, normalise
from s2flow.flow import sigma_grid
from s2flow.methods import method

PROMPTS = ["a red circle moves right on a blue background", "a green square on white"]
STEPS = 3


class OurGrid(FlowMatchEulerDiscreteScheduler):
    """The stock Euler steps on our noise levels; the stock grid ends at its last training step."""

    ours: torch.Tensor

    def set_timesteps(self, num_inference_steps, device=None, **_):
        super().set_timesteps(num_inference_steps, device)
        self.sigmas = self.ours.flip(0).float()
        self.timesteps = (1000 * self.ours.flip(0)[:-1]).float()


@pytest.fixture(scope="module")
def stock():
    """The embedded folder, opened by diffusers alone: none of our adapter is in it."""
    pipeline = WanPipeline.from_pretrained(tiny.weights_folder("micro"), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_latents(stock, z, steps, shift, **options):
    scheduler = OurGrid.from_config(stock.scheduler.config)
    scheduler.ours = sigma_grid(steps, shift)
    stock.scheduler = scheduler
    # Frames: the pipeline wants 4k+1 of a VAE of temporal stride 4. Ours has stride 1, for which its
    # rule (n % 1 != 1, always true) rounds n to n + 1; given latents, it follows their shape.
    return stock(
        height=z.shape[-2] * 4,
        width=z.shape[-1] * 4,
        num_frames=z.shape[2] - 1,
        num_inference_steps=steps,
        latents=z,
        output_type="latent",
        max_sequence_length=TEXT_LENGTH,
        **options,
    ).frames


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_native_equals_the_stock_pipeline(stock, micro, recipe, guidance):
    """Order 1, full attention, no hand-off: the same clip as diffusers makes."""
    r = recipe("method=native", f"steps={STEPS}", f"guidance={guidance}")
    engine = Cascade(micro, r, PROMPTS[:1], [0])
    z = engine.noise(engine.high_shape, "high")
    ours = method("native").generate(engine).latent
    prompt = normalise(PROMPTS[0], MICRO)[0]
    theirs = stock_latents(stock, z, STEPS, r.shift, prompt=prompt, guidance_scale=guidance)
    print(f"{relative(ours, theirs):.1e}")
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert relative(ours, theirs) < 1e-5


def test_low_flow_equals_the_stock_pipeline(stock, micro, recipe):
    """A batch, a negative prompt, another shift; and the comparison sees each of them."""
    r = recipe("method=cascade", f"steps={STEPS}", "negative_prompt=blue", "shift=5")
    engine = Cascade(micro, r, PROMPTS, [3, 4])
    ours = engine.low_flow().flow
    options = {
        "prompt": [normalise(p, MICRO)[0] for p in PROMPTS],
        "negative_prompt": ["blue"] * 2,
        "guidance_scale": r.guidance,
    }
    z = ours.z[STEPS]
    error = relative(ours.z[0], stock_latents(stock, z, STEPS, 5.0, **options))
    print(f"{error:.1e}")
    assert error < 1e-5
    assert relative(ours.z[0], stock_latents(stock, z, STEPS, 4.0, **options)) > 1e-3
    for changed in ({"negative_prompt": ["red"] * 2}, {"guidance_scale": r.guidance + 0.1}):
        other = stock_latents(stock, z, STEPS, 5.0, **{**options, **changed})
        assert relative(ours.z[0], other) > 1e-4


def test_decoding_equals_the_stock_pipeline(stock, micro, recipe):
    z = torch.randn(1, *micro.latent_shape(32, 48, 8), generator=torch.Generator().manual_seed(0))
    stock.scheduler = OurGrid.from_config(stock.scheduler.config)
    stock.scheduler.ours = sigma_grid(1, 1.0)
    kept, stock_step = {}, stock.scheduler.step

    def keep(*args, **kwargs):
        kept["latent"] = stock_step(*args, **kwargs)[0]
        return (kept["latent"],)

    stock.scheduler.step = keep
    frames = stock(
        PROMPTS[0],
        height=32,
        width=48,
        num_frames=7,
        num_inference_steps=1,
        guidance_scale=1.0,
        latents=z,
        output_type="pt",
        max_sequence_length=TEXT_LENGTH,
    ).frames
    ours = micro.decode(kept["latent"])
    assert ours.shape == (1, 8, 32, 48, 3)
    assert torch.allclose(ours, frames.movedim(2, -1), atol=1e-5)


def test_encode_undoes_decode_as_far_as_the_autoencoder_goes(micro):
    """Scale and range conventions of both directions match: a clip survives the round trip."""
    ramp = torch.linspace(0.2, 0.8, 48).view(1, 1, 1, 48, 1).expand(1, 8, 32, 48, 3)
    again = micro.decode(micro.encode(ramp))
    assert float((again - ramp).abs().mean()) < 0.05


# -- the router -------------------------------------------------------------------------------


@pytest.fixture
def untouched(monkeypatch):
    """A fresh transformer in a module whose attention call nobody has routed yet."""
    routed = getattr(transformer_wan, "_stock_dispatch", None)
    if routed is not None:
        monkeypatch.setattr(transformer_wan, "dispatch_attention_fn", routed)
        monkeypatch.delattr(transformer_wan, "_stock_dispatch")
    model = transformer_wan.WanTransformer3DModel.from_pretrained(
        tiny.weights_folder("micro") / "transformer"
    )
    yield model
    if routed is None:  # leave no route behind that monkeypatch does not know of
        transformer_wan.dispatch_attention_fn = transformer_wan._stock_dispatch
        del transformer_wan._stock_dispatch


@torch.no_grad()
def test_router_is_bitwise_transparent(untouched):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 16, 8, 8, 12, generator=generator)
    text = torch.randn(2, TEXT_LENGTH, 96, generator=generator)
    time = torch.tensor([500.0, 500.0])

    def forward():
        return untouched(z, time, text, return_dict=False)[0]

    before = forward()
    router = AttentionRouter(transformer_wan, [b.attn1 for b in untouched.blocks])
    assert torch.equal(forward(), before)
    seen = []
    with router.observing(
        lambda layer, q, k: seen.append((layer, tuple(q.shape), tuple(k.shape)))
    ):
        assert torch.equal(forward(), before)
    shape = (2, 4, 8 * 4 * 6, 32)  # self-attention only, of the video tokens only
    assert seen == [(layer, shape, shape) for layer in range(6)]
    with router.replacing(lambda layer, q, k, v: None):
        assert torch.equal(forward(), before)
    dense = torch.nn.functional.scaled_dot_product_attention
    with router.replacing(lambda layer, q, k, v: dense(q, k, v)):
        assert relative(forward(), before) < 1e-5
    with router.replacing(lambda layer, q, k, v: torch.zeros_like(v) if layer == 5 else None):
        assert relative(forward(), before) > 1e-3
    assert torch.equal(forward(), before)


@torch.no_grad()
def test_an_error_inside_the_model_does_not_leave_the_router_armed(untouched):
    router = AttentionRouter(transformer_wan, [b.attn1 for b in untouched.blocks])
    z, text = torch.randn(1, 16, 2, 4, 4), torch.randn(1, TEXT_LENGTH, 96)
    time = torch.tensor([500.0])
    before = untouched(z, time, text, return_dict=False)[0]

    def broken(layer, q, k):
        raise KeyError("observer")

    with pytest.raises(KeyError), router.observing(broken):
        untouched(z, time, text, return_dict=False)
    assert torch.equal(untouched(z, time, text, return_dict=False)[0], before)


def test_a_module_without_the_call_is_refused():
    with pytest.raises(RuntimeError, match="dispatch_attention_fn"):
        AttentionRouter(torch.nn, [])


# -- the folder -------------------------------------------------------------------------------


def test_saved_folder_loads_again_with_equal_outputs(micro, tmp_path, monkeypatch):
    folder = tmp_path / "micro"
    micro.pipeline.save_pretrained(folder)
    shutil.copy(tiny.weights_folder("micro") / "card.json", folder)
    monkeypatch.setattr(tiny, "WEIGHTS", tmp_path)
    again = tiny.load("micro", "cpu")
    z = torch.randn(1, *micro.latent_shape(32, 48, 8), generator=torch.Generator().manual_seed(0))
    video = torch.rand(1, 8, 32, 48, 3, generator=torch.Generator().manual_seed(1))
    a, b = (m.encode_prompt(PROMPTS[:1], "", 4.0) for m in (micro, again))
    assert relative(a.positive, b.positive) < 1e-5
    assert relative(a.negative, b.negative) < 1e-5
    for part in ("transformer", "vae"):
        theirs = getattr(again, part).state_dict()
        assert theirs and all(
            torch.equal(w, theirs[name]) for name, w in getattr(micro, part).state_dict().items()
        )
    # equal weights, but perhaps mapped at another alignment: the last bit may differ
    assert relative(micro.velocity(z, 0.7, a), again.velocity(z, 0.7, b)) < 1e-5
    assert relative(micro.decode(z), again.decode(z)) < 1e-5
    assert relative(micro.encode(video), again.encode(video)) < 1e-5
