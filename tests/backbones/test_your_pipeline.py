"""A pipeline that its user has changed: what it carries is honoured, recorded or refused."""

import re
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import (
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    PyramidAttentionBroadcastConfig,
    UniPCMultistepScheduler,
    WanPipeline,
)
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig
from tiny_pipelines import BUILD, build_wan, build_wan_2_2_14b, relative

import s2flow
from s2flow.errors import UserError
from s2flow.video import write_video

CPU = torch.device("cpu")
SMALL = {"height": 64, "width": 96, "num_frames": 5, "num_inference_steps": 4}
S2 = SMALL | {"t_i": 2}
PROMPT = "a large red star spins on sand"


@pytest.fixture(scope="module")
def plain():
    return s2flow.generate(build_wan(), PROMPT, **S2)


def unipc(shift):
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )


def generator():
    return torch.Generator().manual_seed(3)


# -- native -------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [3, 5])
@pytest.mark.parametrize("name", BUILD)
def test_native_is_the_stock_pipelines_clip(name, steps):
    """The schedulers that these pipelines ship with: UniPC for Wan, Euler for HunyuanVideo."""
    pipe = BUILD[name]()
    pipe.set_progress_bar_config(disable=True)
    if name.startswith("wan"):
        pipe.scheduler = unipc(pipe.scheduler.config.shift)
    side = 2 if name in ("wan_2_2_5b", "hunyuan_1_5") else 1
    size = {"height": 32 * side, "width": 48 * side, "num_frames": 5}
    call = {"prompt": PROMPT, **size, "num_inference_steps": steps, "output_type": "latent"}
    if name == "hunyuan_1_5":
        pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 12, 20
        pipe.vision_num_semantic_tokens = 3
    else:
        call["guidance_scale"] = 4.0
    ours = s2flow.generate(
        pipe, method="native", generator=generator(), negative_prompt="", **call
    )
    if name == "hunyuan":
        call.pop("negative_prompt", None)
    stock = pipe(**call, generator=generator()).frames
    assert ours.frames.shape == stock.shape
    assert relative(ours.frames, stock) < 1e-5
    assert ours.recipe["scheduler"]["class"] == type(pipe.scheduler).__name__


def test_any_scheduler_of_the_pipe_takes_the_native_steps():
    """Its options too: Karras levels, Wan's double shift under Euler."""
    pipe = build_wan()
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": PROMPT, **SMALL, "output_type": "latent", "negative_prompt": ""}
    for scheduler in (
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        FlowMatchEulerDiscreteScheduler(shift=3.0, use_karras_sigmas=True),
        unipc(5.0),
    ):
        pipe.scheduler = scheduler
        ours = s2flow.generate(pipe, method="native", generator=generator(), **call)
        assert relative(ours.frames, pipe(**call, generator=generator()).frames) < 1e-5


# -- state that alters the clip -----------------------------------------------------------------


def lora(model, name="style", weight=1.0):
    torch.manual_seed(0)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), name)
    model.set_adapters([name], [weight])


CHANGES = {
    "lora": lambda p: lora(p.transformer),
    "half a lora": lambda p: lora(p.transformer, weight=0.5),
    "float8": lambda p: p.transformer.enable_layerwise_casting(
        torch.float8_e4m3fn, compute_dtype=torch.float32
    ),
    "shift": lambda p: p.scheduler.set_shift(9.0),
    "first block cache": lambda p: p.transformer.enable_cache(FirstBlockCacheConfig(10.0)),
    "broadcast": lambda p: p.transformer.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(0, 1000),
            spatial_attention_block_identifiers=("blocks",),
            current_timestep_callback=lambda: p.current_timestep,
        )
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_alters_the_clip_alters_the_recipe(plain, change):
    pipe = build_wan()
    CHANGES[change](pipe)
    out = s2flow.generate(pipe, PROMPT, **S2)
    assert relative(out.latent, plain.latent) > 1e-4
    assert out.recipe != plain.recipe
    assert s2flow.generate(pipe, PROMPT, **S2).latent.equal(out.latent)  # a call leaves no trace


def test_a_skipped_layers_coverage_is_that_of_the_last_step_that_computed_it():
    """With a threshold that nothing exceeds, every step but the first skips all blocks but one."""
    pipe = build_wan()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(10.0))
    report = s2flow.generate(pipe, PROMPT, **S2).reports[0]
    layers = len(pipe.transformer.blocks)
    assert report["low_attention_reused"] == {str(n): layers - 1 for n in (3, 2, 1)}


def test_both_experts_of_wan_2_2_carry_adapters():
    pipe = build_wan_2_2_14b()
    lora(pipe.transformer, "high"), lora(pipe.transformer_2, "low", 0.25)
    recipe = s2flow.generate(pipe, PROMPT, **S2).recipe
    assert [a[:3] for a in recipe["pipeline"]["adapters"]] == [
        ["transformer", "high", 1.0],
        ["transformer_2", "low", 0.25],
    ]


def test_a_step_distilled_lora_runs_in_four_steps_at_guidance_one():
    """t_i is the step nearest to the hand-off's noise level, also on four steps."""
    pipe = build_wan()
    lora(pipe.transformer, "distilled")
    calls = []
    handle = pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    out = s2flow.generate(pipe, PROMPT, **SMALL, guidance_scale=1.0, shift=5.0)
    handle.remove()
    assert out.recipe["t_i"] == 3 and out.recipe["pipeline"]["adapters"][0][1] == "distilled"
    assert len(calls) == 4 + 3  # one pass a step


# -- offloading ---------------------------------------------------------------------------------


OFFLOAD = {
    "model": lambda m: cpu_offload_with_hook(m, CPU),
    "sequential": lambda m: cpu_offload(m, CPU, offload_buffers=True),
    "group": lambda m: apply_group_offloading(m, CPU, CPU, num_blocks_per_group=1),
}


@pytest.mark.parametrize("kind", OFFLOAD)
@pytest.mark.parametrize("name", ["wan", "hunyuan"])
def test_an_offloaded_pipe_makes_the_same_clip(kind, name):
    options = S2 | ({} if name == "hunyuan" else {"negative_prompt": "ball"})
    whole = s2flow.generate(BUILD[name](), PROMPT, **options)
    pipe = BUILD[name]()
    for part in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        if getattr(pipe, part, None) is not None and (kind != "group" or part == "transformer"):
            OFFLOAD[kind](getattr(pipe, part))
    out = s2flow.generate(pipe, PROMPT, **options)
    assert torch.equal(out.latent, whole.latent) and (out.frames == whole.frames).all()
    assert out.recipe == whole.recipe
    if kind == "sequential":
        assert all(p.is_meta for p in pipe.transformer.parameters())


# -- the call in diffusers' words ---------------------------------------------------------------


def test_embeddings_stand_in_place_of_a_prompt_and_of_the_text_encoder(plain):
    pipe = build_wan()
    both = pipe.encode_prompt([PROMPT], [""], max_sequence_length=512)
    pipe.text_encoder = pipe.tokenizer = None
    embeds = dict(zip(("prompt_embeds", "negative_prompt_embeds"), both, strict=True))
    out = s2flow.generate(pipe, **embeds, **S2, generator=generator())
    text = s2flow.generate(build_wan(), PROMPT, negative_prompt="", **S2, generator=generator())
    assert relative(out.latent, text.latent) < 1e-5
    assert len(out.recipe["pipeline"]["embeds"]) == 12 and "pipeline" not in plain.recipe
    with pytest.raises(UserError, match="this pipe has no text_encoder; pass prompt_embeds="):
        s2flow.generate(pipe, PROMPT, **S2)
    with pytest.raises(UserError, match="type negative_prompt_embeds=..., or guidance_scale=1"):
        s2flow.generate(pipe, prompt_embeds=both[0], **S2)


def test_an_embedding_that_the_pipe_does_not_take_leaves_it_as_it_was():
    pipe = build_wan()
    before = dict(pipe.transformer.attn_processors)
    with pytest.raises(UserError, match="pooled_prompt_embeds is no keyword of a WanPipeline"):
        s2flow.generate(pipe, PROMPT, pooled_prompt_embeds=torch.zeros(1, 8), **S2)
    assert pipe.transformer.attn_processors == before


def test_output_types_are_diffusers(plain):
    pipe, latent = build_wan(), plain.latent
    for kind in ("pt", "pil", "latent"):
        out = s2flow.generate(pipe, PROMPT, output_type=kind, **S2)
        assert torch.equal(out.latent, latent)
        if kind == "pt":
            assert out.frames.shape == (1, 5, 3, 64, 96)
        if kind == "pil":
            assert len(out.frames[0]) == 5 and out.frames[0][0].size == (96, 64)
    assert torch.equal(out.frames, latent) and out.low_frames is None


def test_a_pipe_without_an_autoencoder_gives_latents():
    whole = s2flow.generate(build_wan(), PROMPT, **S2, handoff="latent")
    pipe = build_wan(vae=None)
    out = s2flow.generate(pipe, PROMPT, **S2, handoff="latent", output_type="latent")
    assert torch.equal(out.latent, whole.latent)
    for more, message in (
        ({}, "has no vae; type output_type='latent'"),
        ({"output_type": "latent"}, "type handoff='latent'"),
    ):
        with pytest.raises(UserError, match=message):
            s2flow.generate(pipe, PROMPT, **S2, **more)


def test_the_callback_sees_every_step_and_may_change_latents(plain):
    seen = []

    def callback(pipe, i, t, kwargs):
        seen.append((i, round(float(t)), tuple(kwargs["latents"].shape[-2:])))
        return {"latents": kwargs["latents"] * 0.5} if i == 5 else {}

    out = s2flow.generate(build_wan(), PROMPT, **S2, callback_on_step_end=callback)
    assert [i for i, _, _ in seen] == list(range(4 + 2))
    assert [t for _, t, _ in seen] == [1000, 900, 750, 500, 750, 500]
    assert [size for *_, size in seen] == [(4, 6)] * 4 + [(8, 12)] * 2
    assert torch.allclose(out.latent, plain.latent / 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"latents": 0}, "latents is no keyword of s2flow.generate; type seed="),
        ({"num_videos_per_prompt": 2}, "type a list of prompts"),
        ({"sparsitty": 0.5}, "type sparsity="),
        ({"height": 64}, "type both, or high=(height, width)"),
        ({"steps": 3, "num_inference_steps": 4}, "num_inference_steps and steps set the same"),
        ({"output_type": "mp4"}, "type one of output_type=np|pt|pil|latent"),
        ({"prompt_embeds": torch.zeros(1, 8, 32)}, "say the same; leave one out"),
    ],
)
def test_other_words_are_refused_with_what_to_type(given, message):
    with pytest.raises(UserError) as error:
        s2flow.generate(build_wan(), PROMPT, **given)
    assert message in str(error.value) and "\n" not in str(error.value)


# -- nothing silently broken --------------------------------------------------------------------


def test_nan_is_reported_with_the_step_where_it_began():
    pipe = build_wan()
    count = iter(range(100))

    def overflow(module, args, out):
        return (out[0] * float("nan"),) if next(count) >= 2 * 4 + 2 else out

    pipe.transformer.register_forward_hook(overflow)
    with pytest.raises(FloatingPointError, match="first in the velocity of hr step n=1; type"):
        s2flow.generate(pipe, PROMPT, **S2)


def test_what_the_tokenizer_cuts_off_is_said_and_recorded(capsys):
    pipe, long = build_wan(), " ".join(["star"] * 600 + ["cat"])
    out = s2flow.generate(pipe, long, **S2)
    assert out.reports[0]["truncated_tokens"] == 601 + 1 - 512
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and 'cuts off the last 90 tokens of the prompt, from "star' in err


def test_image_to_video_weights_are_named_up_front():
    pipe = build_wan()
    pipe.transformer.register_to_config(in_channels=36)
    with pytest.raises(UserError, match="image-to-video weights, of a WanImageToVideoPipeline"):
        s2flow.generate(pipe, PROMPT, **S2)


# -- a clip that exists -------------------------------------------------------------------------


def test_a_given_clip_takes_the_place_of_the_lr_flow(plain):
    pipe, forwards = build_wan(), []
    pipe.transformer.register_forward_hook(lambda *_: forwards.append(1))
    low = plain.low_frames[0]
    out = s2flow.generate(pipe, PROMPT, video=low, steps=4, t_i=2, sparsity=0.25)
    assert out.frames.shape == (1, 5, 64, 96, 3) and len(out.recipe["input"]) == 12
    assert (out.low_frames[0] == torch.from_numpy(low).mul(255).round().div(255).numpy()).all()
    assert len(forwards) == 2 * (3 + 2)  # LR at t_i + 1 ... 1, HR at t_i ... 1, both of guidance
    assert set(out.reports[0]["density"]) == {"2", "1"}
    other = s2flow.generate(pipe, PROMPT, video=1 - low, steps=4, t_i=2, sparsity=0.25)
    assert other.recipe["input"] != out.recipe["input"]
    assert relative(other.latent, out.latent) > 1e-3


def test_a_given_clip_is_noised_to_the_level_that_the_model_is_told(plain):
    """z = (1 - sigma) x0 + sigma eps with one x0 and one eps: on a line in sigma."""
    pipe, seen = build_wan(), []
    pipe.transformer.register_forward_pre_hook(
        lambda _, __, given: seen.append((given["timestep"][0] / 1000, given["hidden_states"])),
        with_kwargs=True,
    )
    s2flow.generate(pipe, PROMPT, video=plain.low_frames[0], steps=4, t_i=2, guidance_scale=1.0)
    (a, z_a), (b, z_b), (c, z_c) = seen[:3]  # the LR forwards
    assert [round(float(sigma), 2) for sigma in (a, b, c)] == [0.9, 0.75, 0.5]
    slope = (z_b - z_a) / (b - a)
    assert float(slope.abs().max()) > 0.5
    assert relative((z_c - z_b) / (c - b), slope) < 1e-4


def test_a_given_clip_is_fitted_to_the_model_in_one_line(capsys):
    pipe = build_wan()
    video = torch.rand(9, 36, 50, 3, generator=generator())
    out = s2flow.generate(pipe, PROMPT, video=list(video.numpy()), steps=2, t_i=1)
    assert out.low_frames.shape == (1, 9, 32, 48, 3) and out.frames.shape[2:4] == (64, 96)
    assert capsys.readouterr().err == (
        "note: video has 9 frames of 36x50 at 16 fps; refined are 9 frames of 32x48 at 16 fps\n"
    )
    for given, message in (
        ({"video": video[:3], "frames": 5}, "has 3 frames at 16 fps, and frames=5; type frames=1"),
        ({"video": video, "high": (32, 48)}, "is 36x50, larger than high="),
        ({"video": video[..., 0]}, r"has the shape \(9, 36, 50\); type frames \(T, H, W, 3\)"),
        ({"video": "nowhere.mp4"}, "input=nowhere.mp4 is no video"),
        (
            {"video": video, "method": "native"},
            "method=native has no LR stage for a clip to replace",
        ),
    ):
        with pytest.raises(UserError, match=message):
            s2flow.generate(pipe, PROMPT, **given)


# -- docs/your-pipeline.md ----------------------------------------------------------------------


def code_blocks():
    text = (Path(__file__).parents[2] / "docs" / "your-pipeline.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_the_pages_code_runs(tmp_path, monkeypatch, plain):
    """On the tiny pipeline, small, where the CPU stands for the card."""
    monkeypatch.chdir(tmp_path)
    from_pretrained = lambda *_, **__: build_wan()  # noqa: E731
    monkeypatch.setattr(WanPipeline, "from_pretrained", from_pretrained)
    monkeypatch.setattr(WanPipeline, "to", lambda self, *_: self)
    monkeypatch.setattr(
        WanPipeline,
        "enable_model_cpu_offload",
        lambda self: [
            OFFLOAD["model"](m) for m in (self.text_encoder, self.transformer, self.vae)
        ],
    )
    monkeypatch.setattr(
        WanPipeline,
        "load_lora_weights",
        lambda self, _, adapter_name: lora(self.transformer, adapter_name),
    )
    write_video(Path("cat.mp4"), torch.from_numpy(plain.low_frames[0]), 16)
    real = s2flow.generate

    def small(*args, **knobs):
        sizes = {} if "video" in knobs else {"height": 64, "width": 96, "num_frames": 5}
        tile = {"vae_tile": (64, 48)} if "vae_tile" in knobs else {}
        steps = {} if "num_inference_steps" in knobs else {"steps": 3, "t_i": 2}
        return real(*args, **knobs | sizes | tile | steps)

    monkeypatch.setattr(s2flow, "generate", small, raising=False)
    names, blocks = {}, code_blocks()
    for block in blocks:
        block = block.replace('"cuda"', '"cpu"').replace("bfloat16", "float32")
        exec(compile(block, "your-pipeline.md", "exec"), names)
        assert names["out"].frames.shape[0] == 1
    assert len(blocks) == 6
