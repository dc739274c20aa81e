"""The paper's clock from HunyuanVideo's config, what the readings of s predict, and the command."""

import json
import re
from dataclasses import replace

import pytest

from s2flow.backbones.base import Origin
from s2flow.costs import __main__ as command
from s2flow.costs import measured
from s2flow.costs.blank import blank
from s2flow.costs.clip import flow_stage, plan_stage
from s2flow.costs.clock import Rates, known, rates_of
from s2flow.costs.paper import SOURCE, figure6, paper_clock, table1, table2
from s2flow.costs.stages import Stage
from s2flow.costs.trace import Moved
from s2flow.costs.yours import model
from s2flow.errors import UserError

CLOSE = 0.02
SPEEDUPS = {0.75: 1.32, 0.5: 1.92, 0.421875: 2.25, 0.25: 3.58, 0.125: 6.27, 0.015625: 18.3}


@pytest.fixture(scope="module")
def clock():
    return paper_clock()


def seconds_of(stage, rates, ranks=1):
    return sum(stage.times(rates, ranks))


def test_flops_of_a_forward_in_the_papers_setting(clock):
    """PFLOP: LR 1.57 + 9.83, HR 6.27 + 156.7; windows of a half 78.4, of an eighth 19.6."""
    assert (clock.low.video, clock.high.video) == (115_200, 460_800)
    for found, said in (
        (clock.low.linear, 1.57),
        (clock.low.attention, 9.83),
        (clock.high.linear, 6.27),
        (clock.high.attention, 156.7),
        (clock.high.attending_flops(0.5), 78.4),
        (clock.high.attending_flops(0.125), 19.6),
    ):
        assert found / 1e15 == pytest.approx(said, rel=CLOSE)
    assert clock.high.flops() / clock.low.flops() == pytest.approx(14.3, rel=CLOSE)
    for f, speedup in SPEEDUPS.items():
        assert clock.speedup(f) == pytest.approx(speedup, rel=CLOSE)
    # seconds of ten steps at equal utilisation
    for f, seconds in ((1.0, 729), (0.5, 379), (0.125, 116)):
        assert clock.predicted(f) == pytest.approx(seconds, rel=CLOSE)
    assert clock.predicted() == pytest.approx(733, rel=CLOSE)  # as the paper measured it


def test_the_clock_is_counted_and_not_typed_in(clock):
    """Half the tokens of text, or other weights, are other FLOPs."""
    backbone = blank("hunyuan", Origin("hunyuan", SOURCE, "main", "bfloat16"))
    config = backbone.transformer.config
    d = config.num_attention_heads * config.attention_head_dim
    layers = config.num_layers + config.num_single_layers
    joint = 460_800 + 256
    assert clock.high.attention == 4 * layers * d * joint**2
    assert clock.high.attending_flops(0) == pytest.approx(
        4 * layers * d * (joint**2 - 460_800**2), rel=1e-9
    )
    few = clock.reported | {"figure6_seconds_per_10_steps": [
        row | {"seconds": 2 * row["seconds"]}
        for row in clock.reported["figure6_seconds_per_10_steps"]
    ]}  # fmt: skip
    assert replace(clock, reported=few).predicted(0.5) == pytest.approx(2 * clock.predicted(0.5))


def test_what_each_reading_of_a_half_predicts(clock):
    """Of half the volume Figure 6's 96.4 s are above an H800's peak; of s^3 they are possible."""
    rows = {r["row"]: r for r in figure6(clock)}
    assert rows["native HR"]["predicted_seconds"] == pytest.approx(729, rel=CLOSE)
    volume, per_axis = rows["s2flow HR, volume"], rows["s2flow HR, per_axis"]
    assert volume["tflops_per_gpu"] == pytest.approx(1100, rel=CLOSE) and volume["f"] == 0.5
    assert per_axis["tflops_per_gpu"] < 400 and per_axis["f"] == 0.125
    assert volume["reported_speedup"] == pytest.approx(7.6, rel=0.01)
    clips = {r["row"]: r for r in table1(clock)}
    assert clips["native"]["predicted_minutes"] == pytest.approx(61, rel=CLOSE)
    assert clips["diffusehigh"]["predicted_minutes"] == pytest.approx(44, rel=CLOSE)
    assert clips["s2flow, per_axis"]["predicted_minutes"] < 15
    assert clips["s2flow, volume"]["predicted_minutes"] > 25
    assert clock.rest_of_s2flow == pytest.approx(5.9, rel=CLOSE)
    by_s = {r["sparsity"]: r for r in table2(clock) if r["window"] == "adaptive"}
    assert list(by_s) == [0.25, 0.5, 0.75, 1.0] and len(table2(clock)) == 5
    assert by_s[0.75]["per_axis"]["forward_speedup"] == pytest.approx(2.25, rel=CLOSE)
    assert by_s[1.0]["volume"] == by_s[1.0]["per_axis"]
    assert by_s[1.0]["volume"]["clip_speedup"] == pytest.approx(61 / 44, rel=CLOSE)


@pytest.mark.parametrize("name", ["H100", "H800", "H200", "A100"])
def test_planning_is_a_per_cent_of_the_lr_flow_at_most(clock, recipe, name):
    r = recipe("backbone=hunyuan")
    plan = plan_stage(r, clock.low, (30, 48, 80))
    flow = flow_stage("lr", clock.low, r.steps)
    rows = 2 * 128 * clock.low.q[2] * 3072 * 60 * 50  # of all heads, layers and steps
    assert rows < plan.flops < 1.1 * rows
    assert 0 < plan.flops < 0.01 * flow.flops
    keys = 50 * 60 * 24 * 2 * 128 * 115_200  # of all heads, layers and steps, read once
    assert keys < plan.moved.total < 4 * keys
    for ranks in (1, 8):
        share = seconds_of(plan, known(name), ranks) / seconds_of(flow, known(name), ranks)
        assert 0.0001 < share <= 0.01


# -- the roofline -----------------------------------------------------------------------------


def test_the_larger_of_compute_and_memory_counts_and_what_is_sent_comes_on_top():
    moved = Moved(weights=1e9, products=4e9, attention=2e9, rest=3e9)
    given = ("x", "transformer", 1, 3e12, 0, 1, 1.0, 1e12, moved)
    stage = Stage(*given, lambda k: 5e9 * (k - 1))
    assert seconds_of(stage, Rates(1.0)) == 3
    assert seconds_of(stage, Rates(1.0, attention=0.5)) == 4
    assert seconds_of(stage, Rates(1000.0, 1.0)) == 10
    shared = seconds_of(stage, Rates(1e3, 1.0), 3)
    assert shared == pytest.approx(1 + 9 / 3)  # weights are not shared
    assert seconds_of(stage, Rates(1.0, link=1.0), 2) == pytest.approx(1.5 + 5)
    kernels = Rates(1.0, 1.0, kernels=True)
    assert seconds_of(stage, kernels) == max(2, 5) + max(1, 2) + 3
    vae = replace(stage, part="vae", attention=0)
    assert seconds_of(vae, Rates(1.0), 8) == 30 and seconds_of(vae, Rates(1.0, float32=3)) == 1


def test_less_density_and_more_ranks_are_never_slower(clock):
    rates = known("H800")
    spent = [seconds_of(flow_stage("hr", clock.high, 10, f=f), rates) for f in sorted(SPEEDUPS)]
    assert spent == sorted(spent) and spent[0] < 0.1 * spent[-1]
    stage = flow_stage("hr", clock.high, 10, f=0.125)
    by_ranks = [seconds_of(stage, rates, k) for k in (1, 2, 4, 8)]
    assert by_ranks == sorted(by_ranks, reverse=True)
    assert by_ranks[-1] > by_ranks[0] / 8  # what they exchange is not free
    assert seconds_of(stage, replace(rates, link=1e-3), 8) > by_ranks[0]


def test_a_device_is_known_by_a_word_of_its_name():
    assert rates_of("NVIDIA H100 80GB HBM3") == known("H100")
    assert rates_of("a GPU", 24) == known("A100") and rates_of("a GPU", 80) == known("H100")
    assert rates_of("H200", tflops=100, link=7.0) == Rates(100, 3840, 7.0)
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="bandwidth=.* is no rate"):
            rates_of("H200", bandwidth=rate)


# -- python -m s2flow.costs -------------------------------------------------------------------


def test_a_clip_of_yours_grows_with_what_is_asked_for():
    small = {"low": [32, 48], "high": [64, 96], "steps": 4, "t_i": 2}
    lri, heun, long, full = (
        model("micro", "x", known("H100"), **small | more)
        for more in ({}, {"solver": "heun"}, {"steps": 8}, {"windows": "full"})
    )
    flops = [{s.name: s.flops for s in m.costs.stages} for m in (lri, heun, long, full)]
    assert flops[1]["hr"] == 1.5 * flops[0]["hr"]  # the last step has no second forward
    assert flops[2]["lr"] == 2 * flops[0]["lr"] and flops[2]["plan"] == 2 * flops[0]["plan"]
    assert flops[3]["hr"] > flops[0]["hr"]
    rows = lri.forwards()
    assert [r["tokens"] for r in rows] == [192, 768, 768, 768]
    assert rows[0]["attention_pflop"] * 16 == pytest.approx(rows[1]["attention_pflop"])
    minutes = lri.clips()
    assert minutes["cascade"] >= minutes["s2flow, volume"] >= minutes["s2flow, per_axis"]


def test_the_command_prints_both_clocks_and_writes_them(tmp_path, capsys, monkeypatch, clock):
    monkeypatch.setattr(command, "paper_clock", lambda: clock)
    words = ["--backbone", "micro", "--device-name", "H200", "--ranks", "2"]
    assert command.main([*words, "--json", str(tmp_path / "x.json")]) == 0
    out = capsys.readouterr().out
    for word in ("6.27 + 156.73", "729.4", "379.1", "116.4", "18.3x", "HR/LR 14.3", "2x H200"):
        assert word in out, word
    for title in ("Figure 6", "Table 1", "Table 2", "yours: adaptive", "planning is"):
        assert title in out, title
    assert max(map(len, out.split("\n"))) <= 100
    found = json.loads((tmp_path / "x.json").read_text())
    stages = [s["stage"] for s in found["yours"]["stages"]]
    assert stages == ["text", "lr", "plan", "handoff", "hr", "decode"]
    assert len(found["paper"]["table2"]) == 5 and found["yours"]["ranks"] == 2
    lr = found["yours"]["stages"][1]
    assert lr["sent_gb"] > 0 and lr["moved_gb"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--backbone nope", "backbone=nope is unknown"),
        ("--device-name potato", "type one of H200, .* or --tflops and --bandwidth"),
        ("--tflops -3", "tflops=-3 is no rate"),
        ("--backbone micro --ranks 5", "cannot share"),
        ("--backbone micro --ranks 0", "type --ranks 1"),
        ("--backbone micro --sparsity 2", "the share that is kept"),
        ("--backbone micro --frames 0", "frames=0"),
        ("--rates /nowhere.json", "cannot be read"),
        ("--rates pyproject.toml", "holds no rates"),
        ("--backbone micro --json /nowhere/x.json", "cannot be written"),
    ],
)
def test_what_cannot_be_is_one_line(words, said, capsys, request, monkeypatch, clock):
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setattr(command, "paper_clock", lambda: clock)
    assert command.main(words.split()) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and re.search(said, err)


def test_a_size_that_is_none_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--low", "768"])
    assert ended.value.code == 2 and "type HEIGHTxWIDTH" in capsys.readouterr().err


def test_measured_rates_come_back_from_their_file(tmp_path, capsys, monkeypatch):
    tiny = {"product": (8, 8, 8), "attention": (1, 1, 16, 8), "convolution": (1, 2, 3, 4, 4)}
    tiny |= {"copied": 2**12, "repeats": 1}
    monkeypatch.setattr(measured, "CPU", tiny)
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: False)
    file = tmp_path / "rates.json"
    assert command.main(["--measure", "--json", str(file)]) == 0
    rates = measured.load_rates(file)
    printed = json.loads(capsys.readouterr().out)
    assert rates.kernels and rates.tflops == printed["tflops"] > 0
    assert rates.attention > 0 and rates.float32 > 0 and rates.bandwidth > 0 and rates.link == 2
    monkeypatch.setattr(measured, "seconds", lambda work, device, repeats: 1e-9)
    again = measured.measure_rates("cpu", tiny)["rates"]
    amounts = {"attention": 4 * 16 * 16 * 8, "float32": 2 * 27 * 2 * 2 * 48, "tflops": 2 * 8**3}
    for name, amount in (amounts | {"bandwidth": 2 * 2**12 * 1e3}).items():
        assert again[name] == pytest.approx(amount / 1e3, rel=1e-3)
