"""plan=true and the refusal before loading: what is printed, what is offered, that nothing loads."""

import json
from types import SimpleNamespace

import pytest
import torch
from finished import composed

from s2flow.costs import planning
from s2flow.costs.stages import GIB, Costs, Stage, Weights
from s2flow.errors import UserError
from s2flow.methods import method
from s2flow.process import loading
from s2flow.recipe.resolve import resolve
from s2flow.run import runner

# a model of 30 GiB that needs 40 more in its forward, and 60 for a decoder on whole frames (9 in tiles)
BIG = Costs(
    Weights(10 * GIB, GIB, (30 * GIB, 15 * GIB), (2 * GIB, GIB)), heads=24, stages=
    [Stage("text", "text", 512, 1e12, 0), Stage("hr", "transformer", 460_800, 1e18, 40 * GIB, 30),
     Stage("decode", "vae", 0, 1e15, 60 * GIB)],
)  # fmt: skip
TILED = [Stage("decode", "vae", 0, 1e15, 9 * GIB)]


def config(*words):
    return composed(*words, "prompt=cat")


def recipe_of(cfg):
    return resolve(cfg, "test", method(cfg.method.name).KNOBS)


@pytest.fixture
def big(monkeypatch):
    """Everything costs what BIG says."""
    monkeypatch.setattr(planning, "measured", lambda cfg, recipe: BIG)
    monkeypatch.setattr(planning, "_tiled", lambda cfg, recipe: TILED)


@pytest.fixture
def gpu(monkeypatch):
    """gpu(GiB): a CUDA device of this size seems to be here."""

    def with_memory(gib):
        found = SimpleNamespace(name="NVIDIA H100", total_memory=int(gib * GIB))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)

    return with_memory


def test_plan_prints_a_table_or_json_and_loads_nothing(monkeypatch, capsys):
    monkeypatch.setattr(loading, "load_backbone", None)
    monkeypatch.setattr(loading, "weights_hash", None)  # asks the hub
    words = ("plan=true", "memory=24", "tflops=100", "device=cpu")
    cfg = config("backbone=wan_1_3b", *words)
    found = runner.run(cfg)
    out = capsys.readouterr().out
    assert "{" not in out and "assuming 100 TFLOP/s" in out
    cfg.plan = "json"
    found = runner.run(cfg)
    printed = json.loads(capsys.readouterr().out)["plan"]
    assert printed == {k: v for k, v in found.items() if k != "needs"}
    stages = {s["stage"]: s for s in found["stages"]}
    assert list(stages) == ["text", "lr", "plan", "handoff", "hr", "decode"]
    assert stages["lr"]["tokens"] == 32_760 and stages["hr"]["tokens"] == 131_040
    for s in ("lr", "hr"):
        assert stages[s]["seconds"] == pytest.approx(stages[s]["tflop"] / 100, rel=0.01)
        assert stages[s]["peak_gib"] > stages[s]["weights_gib"] > 0
    worst = max(s["peak_gib"] for s in found["stages"])
    assert found["needed_gib"] == pytest.approx(worst * 1.05 + 1, abs=0.02)
    assert found["fits"] == (found["needed_gib"] <= 24)


@pytest.mark.parametrize(
    ("memory", "words", "added"),
    [
        (80, "vae_tile=[]", "offload=model"),  # 30 + 40; the decoder has the rest to itself
        (70, "vae_tile=[]", "offload=group"),  # 2 + 40, 1 + 60
        (50, "vae_tile=[]", "offload=group vae_tile=[512,448]"),
        (44.5, "vae_tile=[]", "offload=group vae_tile=[512,448] context_parallel=2"),
        (20, "vae_tile=[]", "offload=group vae_tile=[512,448] context_parallel=4"),
        (11, "vae_tile=[]", None),  # the decoder's 10 GiB are on every rank
        # beside compile=true, offload= is refused
        (80, "vae_tile=[] compile=true", "vae_tile=[512,448] context_parallel=2"),
        (60, "vae_tile=[] compile=true", "vae_tile=[512,448] context_parallel=4"),
    ],
)
def test_what_is_offered_changes_as_little_as_possible(memory, words, added, big):
    cfg = config("backbone=wan_14b", *words.split())
    assert planning.overrides_that_fit(cfg, recipe_of(cfg), BIG, memory) == added


def test_a_run_that_does_not_fit_is_refused_before_loading(big, gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "load_backbone", None)
    monkeypatch.setattr(loading, "device_here", lambda name: "cuda")
    monkeypatch.setattr(loading, "weights_hash", lambda *a: "test")
    monkeypatch.setattr(loading, "pipeline_state", lambda *a: None)
    gpu(80)
    words = ("backbone=wan_14b", "vae_tile=[]", f"runs_dir={tmp_path}")
    with pytest.raises(UserError) as said:
        runner.run(config(*words))
    assert str(said.value) == (
        "backbone=wan_14b at 1536x2560x81 needs about 107 GiB (stage decode), NVIDIA H100 has 80; "
        "type offload=model, or check_memory=false to run anyway"
    )
    with pytest.raises(TypeError):  # on to loading, which is not there
        runner.run(config(*words, "check_memory=false"))
    with pytest.raises(TypeError):
        runner.run(config(*words, "offload=model"))
    gpu(140)
    with pytest.raises(TypeError):
        runner.run(config(*words))
    gpu(10)
    with pytest.raises(UserError, match=r"type a smaller high=\[height,width\] or fewer frames"):
        runner.run(config(*words))


def test_a_cpu_is_never_refused_for_its_memory(big):
    cfg = config("backbone=wan_14b")
    planning.refuse(cfg, recipe_of(cfg), "cpu")


def test_what_cannot_be_planned_is_not_refused(gpu):
    gpu(1)
    cfg = config("backbone=wan_14b", "backbone.source=nobody/nothing")
    planning.refuse(cfg, recipe_of(cfg), "cuda")
    with pytest.raises(UserError, match="not known here"):
        runner.run(config("backbone=wan_14b", "backbone.source=nobody/nothing", "plan=true"))


def test_offload_on_a_cpu_is_refused():
    with pytest.raises(UserError, match="offload=group .* the CPU; leave offload out"):
        runner.run(config("offload=group", "device=cpu"))


def test_a_slow_memory_or_link_is_what_a_stage_waits_for():
    def stages(*words):
        words = ("plan=true", "memory=24", "tflops=100", "device=cpu", "steps=4", *words)
        found = runner.run(config(*words))
        assert found["seconds"] == pytest.approx(sum(s["seconds"] for s in found["stages"]))
        return {s["stage"]: s for s in found["stages"]}

    usual, slow = stages("bandwidth=1000"), stages("bandwidth=1e-6")
    for s in ("lr", "plan", "hr", "decode"):
        assert slow[s]["bound"] == "memory"
        assert slow[s]["seconds"] == pytest.approx(usual[s]["moved_gb"] * 1e6, rel=0.5, abs=1e3)
    assert usual["plan"]["tflop"] >= 0 and slow["plan"]["seconds"] > 0


@pytest.mark.parametrize("words", ["tflops=0", "tflops=-1", "bandwidth=0", "link=-2", "memory=-3"])
def test_what_is_no_rate_is_refused(words):
    with pytest.raises(UserError, match=f"^{words.split('=')[0]}=.*; type "):
        runner.run(config("plan=true", "device=cpu", words))
