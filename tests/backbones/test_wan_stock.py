"""The embedded backbone against diffusers' own `WanPipeline`: `test_stock.py` with shipped weights."""

import shutil

import pytest
import torch
from diffusers import WanPipeline
from tiny_pipelines import OurGrid, relative

from s2flow.cascade import Cascade
from s2flow.embedded import backbone as tiny
from s2flow.embedded.text import TEXT_LENGTH
from s2flow.embedded.world import MICRO, normalise
from s2flow.methods import method

PROMPTS = ["a red circle moves right on a blue background", "a green square on white"]


@pytest.fixture(scope="module")
def stock():
    """The embedded folder, opened by diffusers alone: none of our adapter is in it."""
    pipeline = WanPipeline.from_pretrained(tiny.weights_folder("micro"), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_stock(stock, z, shift, **options):
    stock.scheduler = OurGrid.of(stock.scheduler, 3, shift)
    # Frames: the pipeline wants 4k+1 of a VAE of temporal stride 4. Ours has stride 1, for which its
    # rule (n % 1 != 1, always true) rounds n to n + 1; given latents, it follows their shape.
    size = {"height": z.shape[-2] * 4, "width": z.shape[-1] * 4, "num_frames": z.shape[2] - 1}
    options = size | {"num_inference_steps": 3, "output_type": "latent"} | options
    return stock(latents=z, max_sequence_length=TEXT_LENGTH, **options).frames


def test_native_equals_the_stock_pipeline(stock, micro, recipe):
    """Order 1, full attention, no hand-off, no guidance: the clip and the video of diffusers."""
    engine = Cascade(micro, recipe("method=native", "steps=3", "guidance=1"), PROMPTS[:1], [0])
    z = engine.noise(engine.high_shape, "high")
    ours = method("native").generate(engine)
    options = {"prompt": normalise(PROMPTS[0], MICRO)[0], "guidance_scale": 1.0}
    theirs = run_stock(stock, z, engine.recipe.shift, **options)
    assert ours.latent.shape == theirs.shape and ours.latent.dtype == theirs.dtype
    assert relative(ours.latent, theirs) < 1e-5
    video = run_stock(stock, z, engine.recipe.shift, output_type="pt", **options).movedim(2, -1)
    assert ours.video.shape == video.shape == (1, 8, 64, 96, 3)
    assert torch.allclose(ours.video, video, atol=1e-5)


def test_low_flow_equals_the_stock_pipeline(stock, micro, recipe):
    """A batch, a negative prompt, another shift; and the comparison sees each of them."""
    r = recipe("method=cascade", "steps=3", "negative_prompt=blue", "shift=5")
    ours = Cascade(micro, r, PROMPTS, [3, 4]).low_flow().flow
    options = {
        "prompt": [normalise(p, MICRO)[0] for p in PROMPTS],
        "negative_prompt": ["blue"] * 2,
        "guidance_scale": r.guidance,
    }
    z = ours.z[3]
    assert relative(ours.z[0], run_stock(stock, z, 5.0, **options)) < 1e-5
    assert relative(ours.z[0], run_stock(stock, z, 4.0, **options)) > 1e-3
    for changed in ({"negative_prompt": ["red"] * 2}, {"guidance_scale": r.guidance + 0.1}):
        assert relative(ours.z[0], run_stock(stock, z, 5.0, **options | changed)) > 1e-4


def test_saved_folder_loads_again_with_equal_outputs(micro, tmp_path, monkeypatch):
    folder = tmp_path / "micro"
    micro.pipeline.save_pretrained(folder)
    shutil.copy(tiny.weights_folder("micro") / "card.json", folder)
    monkeypatch.setattr(tiny, "WEIGHTS", tmp_path)
    again = tiny.load("micro", "cpu")
    for part in ("transformer", "vae", "text_encoder"):
        ours, theirs = (getattr(b.pipeline, part).state_dict() for b in (micro, again))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(w, theirs[name]) for name, w in ours.items())
    # equal weights, but perhaps mapped at another alignment: the last bit may differ
    z = torch.randn(1, *micro.latent_shape(32, 48, 8), generator=torch.Generator().manual_seed(0))
    a, b = (m.velocity(z, 0.7, m.encode_prompt(PROMPTS[:1], "", 4.0)) for m in (micro, again))
    assert relative(a, b) < 1e-5
    assert relative(micro.decode(z), again.decode(z)) < 1e-5
