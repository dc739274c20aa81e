"""`experiments/paired.py`: every run against one, in pairs of clips, prompts as the unit."""

import json

import paired
import pytest

from s2flow.store import Store

RECIPE = {"backbone": "toy", "method": "s2flow", "sparsity": 0.5}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs `base` and `less` of 7 prompts by 2 seeds; `less` lacks a seed, and scores .1 less."""
    monkeypatch.setattr(paired, "RESULTS", tmp_path)
    for run, sparsity, lower in (("base", 0.5, 0.0), ("less", 0.25, 0.1)):
        store = Store(tmp_path / "runs", run, {"version": 1, **RECIPE, "sparsity": sparsity})
        for i in range(7):
            for seed in (0, 1):
                if (run, i, seed) == ("less", 0, 1):
                    continue
                scores = {"world_agreement": 0.2 + 0.1 * i + 0.05 * seed - lower}
                scores |= {"object_count": 1 + (run == "less")}
                recipe = {**RECIPE, "sparsity": sparsity}
                record = {"status": "ok", "run_id": run, "recipe": recipe}
                record |= {"prompt": f"p{i}", "seed": seed, "video": "clips/x.mp4", "bytes": 1}
                record |= {"sha256": "x", "seconds": {}, "scores": scores, "scorers": {}}
                store.commit(f"{i}-{seed}", record)
    return tmp_path


def test_runs_are_compared_over_shared_clips_with_prompts_as_the_unit(runs, capsys):
    assert paired.main(["base", "--runs", str(runs / "runs")]) == 0
    result = json.loads((runs / "toy_paired.json").read_text())
    rows = {row["run"]: row for row in result["rows"]}
    less = rows["less"]
    assert (less["clips"], less["prompts"]) == (13, 7)
    assert less["minus"] == -0.1 and less["real"] and less["wins"] == 0
    assert less["interval"] == pytest.approx([-0.1, -0.1])
    assert less["differs"] == {"sparsity": 0.25} and less["one_object"] == 0
    assert rows["base"]["minus"] == 0 and rows["base"]["ties"] == 7 and not rows["base"]["real"]
    assert result["recipe"] == RECIPE and result["score"] == "world_agreement"
    out = capsys.readouterr().out
    assert "minus base: -0.100* [-0.100, -0.100] over 7 prompts, wins 0%  sparsity=0.25" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["gone"], "there are base, less"),
        (["base", "--score", "mean"], "no clip scored with mean"),
        (["base", "--score", "nonsense"], "no clip scored with nonsense"),
    ],
)
def test_what_cannot_be_compared_is_one_line(runs, words, says):
    with pytest.raises(SystemExit) as stop:
        paired.run(lambda: paired.main([*words, "--runs", str(runs / "runs")]))
    assert says in stop.value.code and stop.value.code.startswith("error: ")
    assert "\n" not in stop.value.code
    with pytest.raises(paired.UserError, match="there are none"):
        paired.main([words[0], "--runs", str(runs / "none")])
