"""What a loaded pipeline brings along is read, recorded or refused."""

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    UniPCMultistepScheduler,
    WanPipeline,
)
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig
from tiny_pipelines import build_hunyuan, build_wan, build_wan_2_2_14b, wan_transformer

from s2flow.backbones import inspect
from s2flow.errors import UserError

PAB = PyramidAttentionBroadcastConfig(
    spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
)


@pytest.fixture
def pipe():
    return build_wan()


def lora(model, name, weight=1.0, seed=0):
    torch.manual_seed(seed)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), name)
    model.set_adapters([name], [weight])


def test_a_plain_pipeline_adds_nothing_to_the_recipe(pipe):
    state = inspect.of_pipe(pipe)
    assert state.identity("float32") == {} and state.offload is None and state.shift == 3.0
    assert state.channels == (16, 16) and state.parts["vae"] == "AutoencoderKLWan"
    assert state.scheduler == {"class": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    state.check("this pipe", "s2flow")
    inspect.of_pipe(build_hunyuan()).check("this pipe", "s2flow")


def test_what_a_checkpoint_keeps_in_float32_is_no_other_storage(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    half = WanPipeline.from_pretrained(
        tmp_path, dtype={"default": torch.bfloat16, "vae": torch.float32}
    )
    kinds = {p.dtype for p in half.transformer.parameters()}
    assert kinds == {torch.bfloat16, torch.float32}
    assert inspect.of_pipe(half).identity("bfloat16") == {}


@pytest.mark.parametrize(
    "change",
    {
        "first block cache": lambda p: p.transformer.enable_cache(FirstBlockCacheConfig(0.2)),
        "another threshold": lambda p: p.transformer.enable_cache(FirstBlockCacheConfig(0.1)),
        "broadcast": lambda p: p.transformer.enable_cache(PAB),
        "lora": lambda p: lora(p.transformer, "style"),
        "weaker lora": lambda p: lora(p.transformer, "style", 0.5),
        "other lora": lambda p: lora(p.transformer, "style", seed=1),
        "float8": lambda p: p.transformer.enable_layerwise_casting(
            torch.float8_e4m3fn, compute_dtype=torch.float32
        ),
        "bf16 vae": lambda p: p.vae.to(torch.bfloat16),
        "tiles": lambda p: p.vae.enable_tiling(),
        "attention": lambda p: p.transformer.set_attention_backend("native"),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_what_alters_the_clip_is_in_the_identity(pipe, change, seen={}):  # noqa: B006
    change[1](pipe)
    found = inspect.of_pipe(pipe).identity("float32")
    assert found and found not in seen.values(), change[0]
    seen[change[0]] = found


def test_adapters_are_named_weighted_and_hashed():
    pipe = build_wan_2_2_14b()
    lora(pipe.transformer, "a")
    lora(pipe.transformer_2, "b", 0.25)
    (part, name, weight, digest), second = inspect.of_pipe(pipe).adapters
    assert (part, name, weight) == ("transformer", "a", 1.0) and len(digest) == 12
    assert second[:3] == ("transformer_2", "b", 0.25) and second[3] != digest
    plain = inspect.weights(build_wan_2_2_14b())
    assert inspect.weights(pipe) == plain  # adapters are not its weights
    pipe.transformer.disable_adapters()
    assert [a[1] for a in inspect.of_pipe(pipe).adapters] == ["b"]


def test_weights_are_known_by_their_values_wherever_they_lie(pipe):
    plain = inspect.weights(pipe)
    assert plain == inspect.weights(build_wan())
    cpu_offload(pipe.transformer, torch.device("cpu"))
    assert next(pipe.transformer.parameters()).is_meta and inspect.weights(pipe) == plain
    assert inspect.weights(build_wan(transformer=wan_transformer(seed=2))) != plain


def test_offloading_is_seen_and_alters_nothing():
    cpu = torch.device("cpu")
    for kind, offload in {
        "model": lambda m: cpu_offload_with_hook(m, cpu),
        "sequential": lambda m: cpu_offload(m, cpu),
        "group": lambda m: apply_group_offloading(m, cpu, cpu, num_blocks_per_group=1),
    }.items():
        pipe = build_wan()
        offload(pipe.transformer)
        state = inspect.of_pipe(pipe)
        assert state.offload == kind and state.identity("float32") == {}


def test_the_live_shift_counts(pipe):
    pipe.scheduler.set_shift(9.0)
    assert inspect.of_pipe(pipe).shift == 9.0 and pipe.scheduler.config.shift == 3.0
    pipe.scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    state = inspect.of_pipe(pipe)
    assert state.shift == 5.0
    assert state.scheduler == {
        "class": "UniPCMultistepScheduler",
        "flow_shift": 5.0,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
    }


@pytest.mark.parametrize("option", inspect.GRID_OPTIONS)
def test_options_of_the_noise_grid_are_refused_by_name_where_our_grid_is_used(pipe, option):
    value = 0.1 if option == "shift_terminal" else True
    pipe.scheduler.register_to_config(**{option: value})
    state = inspect.of_pipe(pipe)
    with pytest.raises(UserError, match=f"has {option}={value}, and .* type pipe"):
        state.check("this pipe", "s2flow")
    if option != "use_dynamic_shifting":
        state.check("this pipe", "native")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.transformer.enable_cache(MagCacheConfig(calibrate=True)), "disable_cache"),
        (
            lambda p: p.transformer.register_to_config(in_channels=36),
            "takes 36 channels for 16: these are image-to-video weights, of a "
            "WanImageToVideoPipeline",
        ),
        (lambda p: p.scheduler.register_to_config(prediction_type="epsilon"), "predicts epsilon"),
        (
            lambda p: p.vae.register_to_config(z_dim=48),
            "its vae makes latents of 48 channels, and its transformer gives 16",
        ),
    ],
)
def test_what_is_not_supported_is_refused_in_one_line(pipe, change, message):
    if "epsilon" in message:
        pipe.scheduler = UniPCMultistepScheduler()
    change(pipe)
    with pytest.raises(UserError, match=message) as caught:
        inspect.of_pipe(pipe).check("this pipe", "native")
    assert "\n" not in str(caught.value)
    assert any(word in str(caught.value) for word in ("; type pipe.", "; load "))


def test_a_folder_tells_the_same_as_the_pipeline_loaded_from_it(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    state, loaded = inspect.of_folder(tmp_path, "WanPipeline"), inspect.of_pipe(pipe)
    for name in ("pipeline", "channels", "scheduler", "parts"):
        assert getattr(state, name) == getattr(loaded, name), name
