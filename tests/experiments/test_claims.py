"""`experiments/claims.py`: every verdict is reached, seeds are no witnesses, missing runs are named."""

import functools
import json
import math
from types import SimpleNamespace

import claim_flows
import claim_rules
import claims
import numpy as np
import pytest
import torch
from finished import finished_run
from test_conf import recipes

from s2flow.store import write_json
from s2flow.video import write_video


@pytest.fixture(autouse=True, scope="module")
def clock():
    """The paper's clock counts a whole model: once is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claim_flows, "paper_clock", functools.cache(claim_flows.paper_clock))
        yield


def sides(difference, noise=0.1, prompts=64, seeds=3, shared=0.0, rng=0):
    """Values of a and b: a - b has this mean; noise per clip, and `shared` by a prompt's seeds."""
    draw = np.random.default_rng(rng)
    easy, own = draw.normal(size=prompts), shared * draw.normal(size=prompts)
    own -= own.mean()
    b = {(f"p{i}", s): float(easy[i]) for i in range(prompts) for s in range(seeds)}
    shift = noise * draw.normal(size=(prompts, seeds))
    shift -= shift.mean()
    a = {
        (p, s): x + difference + own[int(p[1:])] + shift[int(p[1:]), s] for (p, s), x in b.items()
    }
    return a, b


# -- rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "difference", "noise", "verdict"),
    [
        ("above", 0.2, 0.1, "confirmed"),
        ("above", 0.02, 0.01, "refuted"),  # certainly there, and certainly less than what counts
        ("above", -0.2, 0.1, "refuted"),
        ("above", 0.02, 2.0, "undecided"),
        ("below", -0.2, 0.1, "confirmed"),
        ("below", 0.0, 0.1, "refuted"),
        ("below", -0.02, 2.0, "undecided"),
        ("no loss", 0.0, 0.1, "confirmed"),
        ("no loss", -0.02, 0.01, "confirmed"),  # a loss, within the margin
        ("no loss", -0.2, 0.1, "refuted"),
        ("no loss", -0.05, 2.0, "undecided"),
        ("drops", -0.2, 0.1, "confirmed"),
        ("drops", -0.02, 0.01, "refuted"),  # a loss, not a large one
        ("drops", -0.05, 2.0, "undecided"),
        ("alike", 0.0, 0.1, "confirmed"),
        ("alike", 0.2, 0.1, "refuted"),
        ("alike", -0.2, 0.1, "refuted"),
        ("alike", 0.0, 2.0, "undecided"),
        ("over", 0.2, 0.1, "confirmed"),
        ("over", 0.0, 0.1, "refuted"),
        ("over", 0.05, 2.0, "undecided"),
        ("under", 0.0, 0.1, "confirmed"),
        ("under", 0.2, 0.1, "refuted"),
    ],
)
def test_every_rule_reaches_every_verdict_at_its_margin(rule, difference, noise, verdict):
    found = claim_rules.decide(rule, 0.05, *sides(difference, noise), 64, 3)
    assert found.verdict == verdict
    assert found.low <= found.estimate <= found.high
    assert found.estimate == pytest.approx(difference, abs=1e-9)
    assert (found.prompts, found.clips) == (64, 192)


def test_unknown_rules_are_refused():
    for bad in (("better", 0, 1), ("above", 1, 0), ("above", math.nan, 1)):
        with pytest.raises(ValueError):
            claim_rules.judge(*bad, 0.05)


def test_seeds_of_a_prompt_are_one_witness():
    """What a prompt's seeds share narrows nothing: three alike are as wide as one."""
    three = claim_rules.decide("above", 0.05, *sides(0.1, 0.0, seeds=3, shared=1.0), 64, 3)
    one = claim_rules.decide("above", 0.05, *sides(0.1, 0.0, seeds=1, shared=1.0), 64, 1)
    assert three.high - three.low == pytest.approx(one.high - one.low)
    assert three.verdict == one.verdict == "undecided"
    a, b = sides(0.1, 0.0, prompts=192, seeds=1, shared=1.0, rng=3)  # 192 real witnesses
    assert claim_rules.decide("above", 0.05, a, b, 64, 1).high < three.high


@pytest.mark.parametrize("prompts, seeds", [(63, 3), (64, 2)])
def test_fewer_prompts_or_seeds_than_asked_for_decide_nothing(prompts, seeds):
    found = claim_rules.decide("above", 0.05, *sides(5.0, 0.1, prompts, seeds), 64, 3)
    assert found.verdict == "undecided" and found.low > 4  # the estimate is shown all the same
    assert f"{prompts if seeds == 3 else 0} of the 64 prompts have 3 seeds" in found.why
    a, b = sides(5.0)
    b["p0", 1] = None  # a clip without a value on one side does not count
    found = claim_rules.decide("above", 0.05, a, b, 64, 3)
    assert found.verdict == "undecided" and "63 of the 64" in found.why
    assert claim_rules.decide("above", 0.05, {}, {}, 64, 3).verdict == "undecided"


def test_a_gain_on_five_prompts_is_no_gain():
    a, b = sides(0.0, 0.0)
    a |= {(f"p{i}", s): b[f"p{i}", s] + 9.0 for i in range(5) for s in range(3)}
    assert claim_rules.decide("above", 0.05, a, b, 64, 3).verdict == "undecided"


@pytest.mark.parametrize(
    ("failing", "verdict"), [(0, "refuted"), (64, "confirmed"), (32, "undecided")]
)
def test_a_share_has_an_interval_even_if_all_clips_end_alike(failing, verdict):
    a = {(f"p{i}", s): float(i < failing) for i in range(64) for s in range(3)}
    found = claim_rules.decide_share("over", 0.5, a, 64, 3)
    assert found.verdict == verdict and found.low < found.high
    assert found.estimate == failing / 64
    interval = claim_rules.wilson(failing / 64, 64)  # 64 witnesses, not 192
    assert (found.low, found.high) == interval
    assert claim_rules.wilson(0.1, 50) == pytest.approx((0.0435, 0.2136), abs=1e-4)  # a textbook's
    assert claim_rules.decide_share("over", 0.5, a, 65, 3).verdict == "undecided"


# -- which runs -------------------------------------------------------------------------------


def test_needed_runs_are_those_of_the_tables_and_the_oracle(monkeypatch, tmp_path):
    monkeypatch.setattr(claims, "weights_of", lambda cfg: "weights")
    found = claims.needs(tmp_path, 64, 3, [])
    tables = {r.run_id for n in "1234" for r in recipes(f"experiment=table{n}")}
    (oracle,) = recipes("windows=oracle")
    assert {n.run_id for n in found.values()} <= tables | {oracle.run_id}
    assert found["oracle"].run_id == oracle.run_id
    assert all(len(n.clips) == 192 for n in found.values())
    assert found["t_i 20/50"].run_id == found["s2flow"].run_id  # 8 of 20 is the default
    own = {"t_i 30/50": "t_i=12", "order 1": "order=1", "s=1": "windows=full"}
    for name, words in own.items():
        (recipe,) = recipes(words)
        assert recipe.run_id == found[name].run_id
    assert len(claim_rules.CLAIMS) >= 25
    for claim in claim_rules.CLAIMS:
        assert {claim.a, claim.b} - {None} <= set(claim_rules.RUNS)
        assert claim.rule in claim_rules.WORDS
        if not isinstance(claim.measure, claim_rules.Measure):
            assert claim.margin > 0
    sources = " ".join(c.source for c in claim_rules.CLAIMS)
    for source in ("Table 1", "Table 2", "Table 3", "Table 4", "Figure 3", "Eq. 9", "Eq. 12"):
        assert source in sources


# -- from finished runs to verdicts -----------------------------------------------------------

PROMPTS, SEEDS = 6, 2


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Claims that want 6 prompts x 2 seeds, on runs that `add` finishes; main's outcome by sentence."""
    clips = [(f"p{i}", s) for i in range(PROMPTS) for s in range(SEEDS)]
    cfg = SimpleNamespace(backbone=SimpleNamespace(family="tiny", name="micro"))
    ids = {name: f"{i:010x}" for i, name in enumerate(claim_rules.RUNS)}
    found = {n: claims.Need(n, (f"w={n}",), cfg, ids[n], frozenset(clips)) for n in ids}
    monkeypatch.setattr(claims, "needs", lambda *a: found)
    monkeypatch.setattr(claims, "order_claims", lambda make: [])
    smaller = [claims.replace(c, prompts=PROMPTS, seeds=SEEDS) for c in claims.CLAIMS]
    monkeypatch.setattr(claims, "CLAIMS", smaller)

    def add(name, keys=clips, scores=None, **more):
        folder = finished_run(tmp_path / "runs", keys, ids[name])
        for i, path in enumerate(sorted((folder / "records").glob("*.json"))):
            record = json.loads(path.read_text())
            given = {k: v(i) if callable(v) else v for k, v in (scores or {}).items()}
            write_json(path, record | {"scores": given} | more)
        return folder

    def verdicts(*argv):
        claims.main([*argv, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)])
        result = json.loads((tmp_path / f"claims_{cfg.backbone.name}.json").read_text())
        return {(r["source"], r["claim"]): r for r in result["claims"]}

    return SimpleNamespace(
        add=add, verdicts=verdicts, ids=ids, cfg=cfg, found=found, path=tmp_path
    )


def row(rows, words):
    (found,) = [r for (_, claim), r in rows.items() if words in claim]
    return found


def test_finished_runs_decide_and_missing_ones_are_named_with_their_command(small, capsys):
    small.add("s2flow", scores={"world_agreement": lambda i: 0.9 + 0.001 * i, "detail": 0.7})
    small.add("native", scores={"world_agreement": 0.2, "detail": 0.7})
    small.add("hiflow", scores={"world_agreement": lambda i: 0.95 + 0.001 * i, "detail": 0.7})
    small.add("macs", [("p0", 0)], scores={"world_agreement": 0.1})
    rows = small.verdicts()
    assert row(rows, "than the backbone at HR")["verdict"] == "confirmed"
    assert row(rows, "videos than HiFlow")["verdict"] == "refuted"
    macs = row(rows, "videos than MACS")
    assert macs["verdict"] == "undecided" and "0 of the 6 prompts have 2 seeds" in macs["why"]
    absent = row(rows, "videos than DiffuseHigh")
    assert absent["verdict"] == "undecided" and absent["estimate"] is None
    assert absent["why"] == f"runs missing: diffusehigh ({small.ids['diffusehigh']})"
    assert absent["runs"] == [small.ids["s2flow"], small.ids["diffusehigh"]]
    err = capsys.readouterr().err
    assert "python experiments/claims.py --run" in err
    assert "w=diffusehigh" in err and "w=native" not in err and "# 11 clips" in err
    text = (small.path / "claims_micro.md").read_text()
    assert "toy model" in text and "**confirmed**" in text and "VBench Mean" not in text


def test_a_fixed_window_fails_where_its_clips_are_black(small):
    folder = small.add("fixed")  # old records say no outcome; the clips are smooth noise
    assert row(small.verdicts(), "Fixed windows fail")["verdict"] == "refuted"
    path = next((folder / "records").glob("*.json"))
    record = json.loads(path.read_text())
    assert "outcome" not in record and claims.failed(record, folder) == 0
    write_video(folder / record["video"], torch.zeros(3, 32, 48, 3), 8)
    assert claims.failed(record, folder) == 1
    for path in (folder / "records").glob("*.json"):
        write_json(path, json.loads(path.read_text()) | {"outcome": "black"})
    assert row(small.verdicts(), "Fixed windows fail")["verdict"] == "confirmed"


def test_regret_and_cosines_come_from_the_records_per_step_and_layer(small):
    by_layer = {"2": {"0": 0.1, "1": 0.3}, "1": {"0": 0.0, "1": 0.2}}
    oracle = {"coverage": {"2": 0.95, "1": 0.97}, "regret": {"2": 0.2, "1": 0.1}}
    small.add("oracle", oracle=oracle | {"regret_by_layer": by_layer})
    cosine = {"lri": {"2": 0.1, "1": 0.3}, "history": {"2": 0.9, "1": None}}
    small.add("s2flow", derivative_cosine=cosine)
    rows = small.verdicts()
    local, regret, cosine = (row(rows, w) for w in ("is local", "finds HR's", "cosine"))
    assert local["verdict"] == "confirmed" and local["estimate"] == pytest.approx(0.96)
    assert regret["verdict"] == "refuted" and regret["estimate"] == pytest.approx(0.15)
    assert cosine["verdict"] == "refuted" and cosine["estimate"] == pytest.approx(0.2)
    said = json.loads((small.path / "claims_micro.json").read_text())["details"]
    assert said["regret_by_step_and_layer"] == by_layer
    assert said["cosine_own_past_by_step"] == {"2": 0.9}
    assert "| 2 | 0.950 | 0.200 | 0.100 | 0.300 |" in (small.path / "claims_micro.md").read_text()


def test_speed_is_a_ratio_of_seconds(small):
    small.add("native", seconds={"hr": 10.0, "write": 99.0})
    small.add("s2flow", seconds={"lr": 1.0, "hr": 1.0})
    found = row(small.verdicts(), "from prompt to video")
    assert found["estimate"] == pytest.approx(5.0) and found["verdict"] == "confirmed"


def test_a_real_backbone_is_judged_by_vbench_and_never_by_the_world(small):
    six = ("temporal_flickering", "motion_smoothness", "background_consistency")
    six += ("overall_consistency", "aesthetic_quality", "imaging_quality")
    small.cfg.backbone.family, small.cfg.backbone.name = "hunyuan", "hunyuan"
    small.add("s2flow", scores={k: lambda i: 0.80 + 0.001 * i for k in six})
    small.add("native", scores=dict.fromkeys(six, 0.7) | {"world_agreement": 1.0})
    small.add("hiflow", scores={"world_agreement": 0.0, **dict.fromkeys(six[:5], 0.7)})
    rows = small.verdicts()
    best = row(rows, "videos than the backbone at HR")
    assert best["verdict"] == "confirmed" and best["measure"].startswith("VBench Mean")
    lacking = row(rows, "videos than HiFlow")  # five of six dimensions make no mean
    assert lacking["verdict"] == "undecided" and "scorer=[vbench]" in lacking["why"]
    assert row(rows, "less often than HiFlow")["why"] == "VBench has no such dimension"
    assert "toy model" not in (small.path / "claims_hunyuan.md").read_text()


def test_run_makes_only_what_is_missing_and_goes_on_after_a_failure(small, monkeypatch):
    small.add("s2flow")
    small.add("native", [("p0", 0)])
    made = []

    def run(cfg):
        made.append(cfg)
        if len(made) == 1:
            raise claims.UserError("1 of 12 clips failed")

    for name, need in small.found.items():
        small.found[name] = claims.replace(need, cfg=name)
    monkeypatch.setattr(claims.runner, "run", run)
    assert claims.make(small.path / "runs", small.found) == 1
    assert "s2flow" not in made and len(made) == len(claim_rules.RUNS) - 1


# -- without clips ----------------------------------------------------------------------------


def test_the_papers_clock():
    rows = claim_flows.speed_claims()
    verdicts = [r["verdict"] for r in sorted(rows, key=lambda r: r["source"])]
    assert verdicts == ["refuted", "confirmed", "refuted", "undecided", "undecided"]
    text, axis = (r["estimate"] for r in rows if "7.6" in r["claim"])
    assert text == pytest.approx(1.92, abs=0.01) and axis == pytest.approx(6.27, abs=0.01)


def test_the_order_of_closed_form_flows_is_measured(monkeypatch):
    """Fewer draws than the real thing; the orders do not depend on how many."""
    monkeypatch.setattr(claim_flows, "PROMPTS", 8)
    monkeypatch.setattr(claim_flows, "SEEDS", 1)
    twin, half = claim_flows.order_claims(claims.closed_form)
    assert twin["estimate"] == pytest.approx(2, abs=0.2) and twin["verdict"] == "confirmed"
    assert half["estimate"] < 0 and half["verdict"] == "refuted" and half["prompts"] == 8


def test_words_that_run_py_would_not_take_are_one_line(tmp_path):
    with pytest.raises(claims.UserError, match="sparsitty"):
        claims.main(["--runs", str(tmp_path), "sparsitty=0.5"])
    for word in ("sparsity=0.25", "t_i=4", "seeds=5"):  # would make the claims' sentences false
        with pytest.raises(claims.UserError, match="what the claims vary"):
            claims.main(["--runs", str(tmp_path), word])
    with pytest.raises(SystemExit):
        claims.main(["--prompts", "0"])
