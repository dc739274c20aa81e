"""s2flow.generate: the clips of run.py, from a loaded pipeline that is left as it was."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FACTS
from diffusers import UniPCMultistepScheduler
from diffusers.utils import export_to_video
from test_cli import run_here

import s2flow
from s2flow import methods
from s2flow.cascade import Cascade
from s2flow.errors import UserError
from s2flow.recipe import defaults
from s2flow.recipe.schema import BackboneConf
from s2flow.video import read_video

SMALL = {"high": (64, 96), "frames": 5, "steps": 3, "t_i": 2}
PROMPTS = ["a large red star spins on sand", "a blue cat"]
CONF = {"wan": "wan_1_3b"}
every = pytest.mark.parametrize("case", list(FACTS), indirect=True)


def small(case):
    """Keywords of a short call, at sizes that the family's strides divide."""
    return SMALL | {"high": case.high}


def stock_output(case):
    """What diffusers alone makes with this pipe, and all of it that a call could have changed."""
    guidance = {} if case.name == "hunyuan_1_5" else {"guidance_scale": 3.0}
    return case.stock(
        prompt=PROMPTS,
        height=case.low[0],
        width=case.low[1],
        num_frames=5,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        **guidance,
    ).frames


def state(pipe):
    t, second = pipe.transformer, getattr(pipe, "transformer_2", None)
    every = [m for part in (t, second, pipe.vae) if part is not None for m in part.modules()]
    return {
        "processors": {name: id(p) for name, p in t.attn_processors.items()},
        "processors_2": second and {name: id(p) for name, p in second.attn_processors.items()},
        "forwards": [vars(m).get("forward") for m in every],
        "hooks": [(dict(m._forward_pre_hooks), dict(m._forward_hooks)) for m in every],
        "tiles": {k: v for k, v in vars(pipe.vae).items() if k.startswith(("tile_", "use_"))},
        "parts": {name: id(part) for name, part in pipe.components.items()},
        "modules": {name: id(m) for name, m in t.named_modules()},
        "weights": [(id(p), p.dtype, p.device, p._version) for p in t.parameters()],
        "buffers": [(id(b), b.dtype, b.device) for b in t.buffers()],
        "scheduler": dict(pipe.scheduler.config),
        "types": [{(p.dtype, p.device) for p in m.parameters()} for m in (pipe.vae, pipe.text_encoder)],
        "training": [m.training for m in (t, pipe.vae, pipe.text_encoder)],
        "config": dict(pipe.config),
    }  # fmt: skip


class Enough(Exception):
    pass


def interrupted(stage, step, total):
    if stage == "hr" and step == 1:
        raise KeyboardInterrupt


def refused(low_frames):
    raise Enough


CALLS = [  # keywords, how the call ends
    ({"vae_tile": [32, 32], "rope": "ntk", "temperature": 1.2, "shift_high": 9}, None),
    ({"rope": "interpolate", "temperature": "auto", "progress": interrupted}, KeyboardInterrupt),
    ({"windows": "full", "on_low": refused}, Enough),
    ({"frames": 6}, UserError),
]


@every
def test_the_pipe_is_left_as_it_was(case):
    pipe = case.stock
    before, found, dice = stock_output(case), state(pipe), torch.get_rng_state()
    for how, ends in CALLS:
        with pytest.raises(ends) if ends else contextlib.nullcontext():
            s2flow.generate(pipe, PROMPTS, **small(case) | how)
        assert state(pipe) == found
        assert torch.equal(torch.get_rng_state(), dice)
    assert torch.equal(stock_output(case), before)


@every
def test_a_pipe_that_a_backbone_has_wrapped_can_be_borrowed(case):
    """Two routers on one model: the windows are the borrower's, and the owner works as before."""
    pipe, seen = case.backbone.pipeline, []
    found = state(pipe)
    with case.backbone.router.observing(lambda layer, q, k: seen.append(layer)):
        one = s2flow.generate(pipe, PROMPTS[0], **small(case), sparsity=0.5)
    assert not seen and state(pipe) == found
    density = one.reports[0]["density"].values()
    assert all(abs(f - 0.5) < 0.03 for f in density)


@every
def test_it_is_the_clip_of_run_py(case, recipe, monkeypatch):
    """The same recipe but for names, and the same pixels, as the config that Hydra composes."""
    words = [f"backbone={CONF.get(case.name, case.name)}", "frames=5", "steps=3"]
    words += [f"{n}={list(size)}" for n, size in (("low", case.low), ("high", case.high))]
    words += ["t_i=2", "brick_low=[1,1,1]", "brick_high=[1,2,2]", "backbone.dtype=float32"]
    r = recipe(*words, "sparsity=0.25", "solver=ab2", "negative_prompt=")
    truth = methods.method("s2flow").generate(Cascade(case.backbone, r, PROMPTS, [3, 4]))
    options = {"sparsity": 0.25, "solver": "ab2", "negative_prompt": ""}
    out = s2flow.generate(case.backbone.pipeline, PROMPTS, seed=[3, 4], **small(case), **options)
    assert torch.equal(out.latent, truth.latent)
    assert np.array_equal(out.frames, truth.video.numpy())
    assert np.array_equal(out.low_frames, truth.low_video.numpy())
    assert out.reports == truth.reports
    named = ("backbone", "weights")
    assert {k: v for k, v in out.recipe.items() if k not in named} == {
        k: v for k, v in r.identity().items() if k not in named
    }
    assert out.frames.shape == (2, 5, *case.high, 3) and out.frames.dtype == np.float32
    assert out.frames.min() >= 0 and out.frames.max() <= 1
    assert out.low_frames.shape[2:4] == case.low
    assert set(out.seconds) >= {"text", "lr", "plan", "handoff", "hr", "decode"}


def test_run_py_and_the_call_go_through_one_function(monkeypatch, tmp_path):
    """The embedded model by name: same recipe, hash of weights included, and the same video."""
    made, real = [], methods.generate
    monkeypatch.setattr(
        methods, "generate", lambda *a, **k: made.append(real(*a, **k)) or made[-1]
    )
    text = "a large red ball moves right on sand"
    words = ["steps=3", "t_i=2", "frames=3", "seed=5"]
    assert run_here(monkeypatch, tmp_path, f"prompt={text}", *words, "scorer=[none]") == 0
    out = s2flow.generate("micro", text, steps=3, t_i=2, frames=3, seed=5)
    ours, theirs = made[1], made[0]
    assert torch.equal(ours.latent, theirs.latent) and torch.equal(out.latent, ours.latent)
    (path,) = tmp_path.glob("runs/*/records/*.json")
    record = json.loads(path.read_text())
    assert out.recipe == record["recipe"] and out.fps == record["fps"] == 8
    written = read_video(path.parents[1] / record["video"])
    assert float((torch.from_numpy(out.frames[0]) - written).abs().mean()) < 0.03  # H.264


@pytest.mark.parametrize("said", [None, 0, True])
def test_progress_and_preview_come_in_order_and_false_alone_stops(case, said):
    """A callback that draws and returns nothing, or a number, goes on."""
    events = []

    def see(low_frames):
        events.append(low_frames)
        return said

    step = lambda *now: events.append(now)  # noqa: E731
    out = s2flow.generate(case.stock, PROMPTS[0], **SMALL, progress=step, on_low=see)
    lr, hr = [("lr", n, 3) for n in (1, 2, 3)], [("hr", n, 2) for n in (1, 2)]
    assert events[:3] == lr and events[4:] == hr
    assert events[3].shape == (1, 5, 32, 48, 3) and np.array_equal(events[3], out.low_frames)
    assert out.frames is not None
    del events[:]
    stopped = s2flow.generate(
        case.stock, PROMPTS[0], **SMALL, progress=step, on_low=lambda low: low.mean() < 0
    )
    assert events == lr
    assert stopped.frames is None and stopped.latent is None
    assert np.array_equal(stopped.low_frames, out.low_frames)


def test_a_pipe_of_half_precision_keeps_its_types(case):
    pipe = type(case.stock).from_pretrained(case.folder, dtype=torch.bfloat16)
    found = state(pipe)
    out = s2flow.generate(pipe, PROMPTS, **SMALL, sparsity=0.5, rope="ntk")
    assert out.recipe["dtype"] == "bfloat16" and out.latent.dtype == torch.float32
    assert out.frames.dtype == np.float32 and np.isfinite(out.frames).all()
    assert state(pipe) == found


@pytest.mark.parametrize("case", ["wan"], indirect=True)
def test_native_is_the_stock_pipelines_own(case, tmp_path):
    """The scheduler's shift is ours; test_stock holds the video of `method=native` equal to its own."""
    out = s2flow.generate(case.stock, PROMPTS[0], method="native", **SMALL)
    assert out.low_frames is None and out.frames.shape == (1, 5, 64, 96, 3)
    assert out.recipe["shift"] == case.stock.scheduler.config.shift
    assert "sparsity" not in out.recipe
    path = export_to_video(out.frames[0], str(tmp_path / "clip.mp4"), fps=out.fps)
    assert read_video(path).shape == (5, 64, 96, 3)  # frames are what diffusers writes


# -- what is left open --------------------------------------------------------------------------


def resolved(pipe, **knobs):
    """The recipe of a call that stops before anything is computed but the text."""

    def stop(backbone, recipe, *_, **__):
        raise Enough(recipe)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Enough) as stopped:
        patch.setattr(methods, "generate", stop)
        s2flow.generate(pipe, "a cat", **knobs)
    return stopped.value.args[0]


@pytest.mark.parametrize("case", ["wan"], indirect=True)
def test_the_shift_is_that_of_the_pipes_scheduler(case, monkeypatch):
    assert resolved(case.stock, **SMALL).shift == 3.0
    monkeypatch.setattr(
        case.stock, "scheduler", UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=5.0)
    )
    assert resolved(case.stock, **SMALL).shift == 5.0
    assert resolved(case.stock, **SMALL, shift=2).shift == 2.0


def test_what_is_not_typed_comes_from_the_pipe_and_its_family(case):
    r = resolved(case.stock, high=(64, 96), frames=5)
    conf = defaults.conf_file("backbone", CONF.get(case.name, case.name), BackboneConf)
    assert (r.low, r.brick_low, r.brick_high) == ((32, 48), (1, 1, 1), (1, 2, 2))
    assert (r.steps, r.guidance, r.dtype) == (conf.steps, conf.guidance, "float32")
    assert r.negative_prompt == (conf.negative_prompt or "")
    sigma = r.shift * r.t_i / r.steps / (1 + (r.shift - 1) * r.t_i / r.steps)
    assert abs(sigma - 0.913) < 0.02
    assert resolved(case.stock, low=(32, 32), frames=5).high == (64, 64)
    assert resolved(case.stock, high=(80, 112), frames=5).low == (32, 48)  # 40x56 to whole tokens


REAL = [  # (family's files, size, frames) -> bricks of the file that fits
    (["wan_1_3b", "wan_14b"], (960, 1664), 81, "wan_1_3b"),
    (["wan_1_3b", "wan_14b"], (1536, 2560), 81, "wan_14b"),
    (["hunyuan"], (1536, 2560), 117, "hunyuan"),
]


@pytest.mark.parametrize(("names", "high", "frames", "fits"), REAL)
def test_at_the_papers_sizes_bricks_are_those_of_conf(names, high, frames, fits):
    files = [defaults.conf_file("backbone", name, BackboneConf) for name in names]
    cfg = defaults.composed(files, {"high": high, "frames": frames})
    truth = defaults.conf_file("backbone", fits, BackboneConf)
    assert cfg.low == truth.low and cfg.brick_low == truth.brick_low
    assert cfg.brick_high == truth.brick_high


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ((30, 48, 80), (30, 96, 160)),
        ((21, 30, 52), (21, 60, 104)),
        ((21, 30, 52), (21, 45, 78)),  # 1.5x
        ((31, 34, 60), (31, 68, 120)),
        ((2, 2, 3), (2, 4, 6)),
    ],
)
def test_derived_bricks_cut_both_grids_into_one_grid(low, high):
    a, b = defaults.bricks(low, high)
    assert all(n % x == 0 for n, x in zip((*low, *high), (*a, *b), strict=True))
    grids = [tuple(n // x for n, x in zip(*p, strict=True)) for p in ((low, a), (high, b))]
    assert grids[0] == grids[1]
    size, count = np.prod(b), np.prod(grids[0])
    assert size <= 128 and max(b) <= 16
    assert count >= 512 or size == np.prod([y // x for x, y in zip(low, high, strict=True)])


def test_ragged_grids_keep_the_ratio_of_the_sizes(case):
    assert defaults.bricks((21, 23, 40), (21, 45, 80)) == ((2, 4, 4), (2, 8, 8))
    out = s2flow.generate(case.stock, PROMPTS[0], **SMALL | {"high": (80, 112)}, sparsity=0.5)
    assert out.frames.shape == (1, 5, 80, 112, 3)


# -- what cannot be done ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sparcity": 0.5}, "sparcity is no keyword of s2flow.generate; type sparsity=..."),
        ({"zzz": 1}, "there are method, windows, sparsity"),
        ({"device": "cuda"}, "device is no keyword"),
        ({"offload": "model"}, "offload is no keyword"),
        ({"high": (65, 96)}, "high=[65,96] cannot be divided by 16"),
        ({"high": (64,)}, "high=[64] is no size"),
        ({"high": 64}, "high=64 is refused: type a list in brackets"),
        ({"high": (0, 96)}, "high=[0,96] cannot be divided"),
        ({"high": "big"}, "high='big' is refused"),
        ({"low": (64, 96)}, "high=[64,96] is not larger than low=[64,96]; type high=[128,192]"),
        ({"frames": 6}, "frames=6 is not a multiple of 4 plus 1; type frames=5"),
        ({"steps": "many"}, "steps='many' is refused: type a whole number"),
        ({"sparsity": 50}, "type sparsity=0.5"),
        ({"sparsity": None}, "sparsity=None is refused"),
        ({"rope": "yarn"}, "rope=yarn is unknown; type one of rope=none|interpolate|ntk"),
        (
            {"windows": "squares"},
            "windows=squares is unknown; type one of adaptive|coverage|cubes",
        ),
        (
            {"windows": {"shape": 1}},
            "type the name of a file of conf/windows, or a dict of policy",
        ),
        ({"windows": {"dense_layers": [9]}}, "windows.dense_layers holds 9"),
        ({"method": "magic"}, "method=magic is unknown; type one of method=bicubic|cascade"),
        ({"seed": [1, 2]}, "seed holds 2 numbers for 1 prompts"),
        ({"seed": 1.0}, "seed=1.0 is no whole number; type seed=0"),
        ({"negative_prompt": "a ${b}"}, "is refused: type it without ${ or ???"),
        ({"prompt": " "}, "prompt is empty or no text"),
        ({"prompt": []}, "prompt is empty or no text"),
        ({"prompt": 3}, "prompt is empty or no text"),
    ],
)
@pytest.mark.parametrize("case", ["wan"], indirect=True)
def test_bad_values_cost_one_line(case, given, said):
    found = state(case.stock)
    with pytest.raises(UserError) as error:
        s2flow.generate(case.stock, **{"prompt": "a cat"} | SMALL | given)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert state(case.stock) == found


@pytest.mark.parametrize("case", ["wan"], indirect=True)
def test_numbers_of_numpy_are_numbers(case):
    plain = s2flow.generate(case.stock, "a cat", seed=1, **SMALL)
    sizes = {"high": np.array(SMALL["high"]), "low": (np.int64(32), np.int64(48))}
    for seed in (np.int64(1), np.array([1]), True):
        same = s2flow.generate(case.stock, "a cat", seed=seed, **SMALL | sizes)
        assert np.array_equal(same.frames, plain.frames)


def test_pipes_that_cannot_be_used_are_refused(micro):
    for pipe, said in (
        (SimpleNamespace(), "a SimpleNamespace cannot be used; pass a loaded WanPipeline or"),
        ("maxi", "backbone=maxi is unknown; type one of hunyuan|hunyuan_1_5|micro"),
        (micro.pipeline, "type s2flow.generate('micro', ...)"),
    ):
        with pytest.raises(UserError) as error:
            s2flow.generate(pipe, "a cat")
        assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("case", ["wan_2_2_14b"], indirect=True)
def test_experts_and_their_boundary_are_the_pipes(case, monkeypatch):
    r = resolved(case.stock, high=(64, 96), frames=5)
    assert (r.guidance, r.guidance_2, r.steps) == (4.0, 3.0, 40)
    assert resolved(case.stock, **SMALL, guidance_2=2).guidance_2 == 2.0
    without = type(case.stock)(**case.stock.components | {"transformer_2": None})
    without.register_to_config(boundary_ratio=0.9)
    with pytest.raises(UserError, match=r"boundary_ratio=0\.9 and has no transformer_2"):
        s2flow.generate(without, "a cat", **SMALL)


@pytest.mark.parametrize("case", ["hunyuan_1_5"], indirect=True)
def test_a_pipes_own_guider_must_be_plain(case):
    odd = type(case.stock.guider)(guidance_scale=6.0, guidance_rescale=0.7)
    pipe = type(case.stock)(**case.stock.components | {"guider": odd})
    with pytest.raises(UserError, match="this pipe: its guider has guidance_rescale=0.7"):
        s2flow.generate(pipe, "a cat", **SMALL)


def test_the_package_holds_conf():
    """So that an ordinary installation has it too, and not only a checkout."""
    root = Path(defaults.__file__).parents[2]
    names = [
        sorted(p.relative_to(c) for p in c.rglob("*.yaml")) for c in (defaults.CONF, root / "conf")
    ]
    assert names[0] == names[1] and len(names[0]) > 20
    assert "*.yaml" in (root / "pyproject.toml").read_text()


def test_importing_the_package_is_cheap():
    code = "import s2flow, sys; assert not {'torch', 'diffusers', 'hydra'} & set(sys.modules)"
    code += "; assert hasattr(s2flow, 'generate') and not hasattr(s2flow, 'nothing')"
    subprocess.run([sys.executable, "-c", code], check=True)
