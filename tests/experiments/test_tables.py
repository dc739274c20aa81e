"""`experiments/tables.py`: only comparable clips share a table, and no proxy poses as VBench."""

import csv
import io
import json
import math
import shutil
import sys
import types

import clips as clips_module
import notes
import pandas as pd
import pytest
import rows as rows_module
import sheet
import tables
from finished import finished_run

from s2flow import methods, metrics
from s2flow.store import load_records
from s2flow.store.recipes import ADDED_FIELDS

PAPER_METHODS = [name for name in methods.names() if hasattr(methods.method(name), "KNOBS")]
PAPER = notes.PAPER_NUMBERS
BASE = {
    **{"status": "done", "backbone": "micro", "method": "s2flow", "sparsity": 0.5},
    **{"density": "volume", "windows": "adaptive", "order": 2, "solver": "lri", "t_i": 12},
    **{"steps": 20, "height": 64, "width": 96, "frames": 8, "realised_density": 0.5},
    **{"seconds_total": 4.0, "seconds_lr": 1.0, "seconds_hr": 2.0, "device": "cpu"},
    **{"commit": "abc123", "score_temporal_flickering": 0.9, "score_world_agreement": 0.7},
}
KNOBS = ("method", "sparsity", "density", "windows", "order", "solver", "t_i", "noise")
KNOBS += ("backbone", "steps", "height", "variant")  # what makes a run id here


def clips(count=2, **changed):
    """`count` clips of one run, on prompts p0, p1, ..."""
    row = {**BASE, **changed}
    run_id = "-".join(str(row.get(k)) for k in KNOBS)
    return [{"run_id": run_id, "prompt": f"p{i}", "seed": 0, **row} for i in range(count)]


make_tables = rows_module.make_tables


def make(name, *runs):
    return make_tables(name, pd.DataFrame([r for run in runs for r in run]))


def by_setting(table):
    return {row["setting"]: row for row in table.rows}


def theirs(row, column):
    return row[notes.PAPER + column]


def test_table1_keeps_methods_with_other_parameters_apart():
    (table,) = make(
        "table1",
        clips(),
        clips(method="hiflow", score_world_agreement=0.5, variant=None),
        clips(method="hiflow", score_world_agreement=0.1, variant="alpha=0"),
    )
    rows = by_setting(table)
    assert rows["hiflow"]["own world_agreement"] == pytest.approx(0.5)
    assert theirs(rows["hiflow"], "Mean") == 0.7363
    assert rows["hiflow alpha=0"]["own world_agreement"] == pytest.approx(0.1)
    assert theirs(rows["hiflow alpha=0"], "Mean") is None


def sparsity_sweep(**changed):
    return [r for s in (0.25, 0.5, 1.0) for r in clips(sparsity=s, **changed)]


# -- matching ---------------------------------------------------------------------------------


def test_table2_puts_each_run_beside_the_papers_row_of_its_sparsity_and_window():
    (table,) = make(
        "table2",
        clips(sparsity=0.25, realised_density=0.26, score_world_agreement=0.6),
        clips(sparsity=0.5),
        clips(sparsity=0.5, windows="fixed"),
        clips(sparsity=1.0, windows="full", density=math.nan, seconds_hr=5.0),
        clips(sparsity=0.1),
    )
    rows = by_setting(table)
    names = ("s=0.25 adaptive", "s=0.5 adaptive", "s=0.75 adaptive", "s=1 full attention")
    assert list(rows) == [*names, "s=0.5 fixed", "s=0.1 adaptive"]
    quarter = rows["s=0.25 adaptive"]
    assert quarter["f"] == pytest.approx(0.26) and theirs(quarter, "Mean") == 0.6797
    assert quarter["own world_agreement"] == pytest.approx(0.6)
    assert quarter["HR speed-up"] == pytest.approx(2.5)
    assert theirs(rows["s=0.5 fixed"], "outcome").startswith("fail")
    assert theirs(rows["s=0.5 fixed"], "Mean") is None
    assert rows["s=0.75 adaptive"]["clips"] is None  # the paper's row, not run here
    assert theirs(rows["s=0.75 adaptive"], "Mean") == 0.7404
    assert theirs(rows["s=0.1 adaptive"], "Mean") is None  # our row, not in the paper


def test_table3_separates_order_from_other_solvers():
    (table,) = make(
        "table3",
        *(clips(order=k, score_world_agreement=k / 10) for k in (1, 2, 3)),
        clips(solver="ab2", order=2, score_world_agreement=0.9),
    )
    rows = by_setting(table)
    assert rows["order 2"]["own world_agreement"] == pytest.approx(0.2)
    assert theirs(rows["order 2"], "Mean") == 0.7389
    assert rows["ab2"]["own world_agreement"] == pytest.approx(0.9)
    assert theirs(rows["ab2"], "Mean") is None
    (table,) = make("table3", clips(solver="euler", order=math.nan), clips(order=2))
    assert by_setting(table)["order 1"]["clips"] == "2 of 2"  # Euler is order 1


def test_table4_matches_by_the_fraction_of_steps_that_remain():
    (table,) = make("table4", *(clips(t_i=t) for t in (16, 12, 4, 5)))
    rows = by_setting(table)
    assert theirs(rows["t_i=12 of 20"], "t_i") == "t_i=30 of 50"
    assert theirs(rows["t_i=12 of 20"], "Mean") == 0.7389
    assert theirs(rows["t_i=16 of 20"], "Mean") == 0.6080
    assert theirs(rows["t_i=4 of 20"], "Mean") == 0.6939
    assert theirs(rows["t_i=5 of 20"], "Mean") is None
    assert rows["t_i=20 of 50"]["clips"] is None


def test_table1_compares_methods_and_ignores_knobs_they_do_not_read():
    (table,) = make(
        "table1",
        clips(),
        clips(method="native", sparsity=1.0, order=1, t_i=math.nan),
        clips(method="cascade", sparsity=0.9, windows=None, solver=None, order=math.nan),
        clips(method="macs", t_i=14),
    )
    rows = by_setting(table)
    assert {rows[m]["clips"] for m in ("native", "cascade", "s2flow")} == {"2 of 2"}
    assert rows["macs"]["clips"] is None  # another hand-off step: not comparable
    assert "left out: 2 finished clips made with other settings" in table.notes
    assert theirs(rows["s2flow"], "imaging_quality") == 0.6660
    assert theirs(rows["native"], "minutes") == 61


# -- only comparable rows ---------------------------------------------------------------------


def test_backbones_steps_and_sizes_get_tables_of_their_own():
    made = make(
        "table2",
        sparsity_sweep(),
        sparsity_sweep(backbone="tiny"),
        sparsity_sweep(steps=50, t_i=30),
        sparsity_sweep(height=128, width=192),
        clips(5, backbone="wan"),
    )
    assert len(made) == 5
    assert {t.group["backbone"] for t in made} == {"micro", "tiny", "wan"}
    assert all("steps" in t.title and t.group["backbone"] in t.title for t in made)
    assert made[0].group["backbone"] == "micro"  # six clips; wan has five


def test_other_knobs_are_held_at_the_most_frequent_value_and_the_note_says_so():
    other = [r for s in (0.25, 0.5) for r in clips(9, sparsity=s, t_i=10, score_detail=5.0)]
    (table,) = make("table2", sparsity_sweep(), other)
    assert any(n.startswith("held: ") and "t_i=10 of 20" in n for n in table.notes)
    rows = by_setting(table)
    assert rows["s=0.25 adaptive"]["clips"] == "9 of 9"
    assert rows["s=1 full attention"]["clips"] is None
    assert "left out: 6 finished clips made with other settings" in table.notes


def test_a_big_run_hides_no_sweep_and_ties_go_to_the_papers_setting():
    (table,) = make("table2", clips(50, t_i=10), sparsity_sweep())
    assert any("t_i=12 of 20" in n for n in table.notes if n.startswith("held"))
    assert sum(row["clips"] is not None for row in table.rows) == 3
    (table,) = make("table2", sparsity_sweep(order=3), sparsity_sweep(order=2, t_i=12))
    assert any("order=2" in n and "t_i=12" in n for n in table.notes)


def test_densities_never_share_a_table():
    (table,) = make("table2", sparsity_sweep(), sparsity_sweep(density="per_axis")[:4])
    assert by_setting(table)["s=0.25 adaptive"]["run"].count("volume") == 1


def test_two_recipes_that_look_alike_are_not_averaged_and_a_clip_counts_once():
    (table,) = make(
        "table2",
        sparsity_sweep(),
        clips(1, sparsity=0.5, noise="aligned", score_world_agreement=0.0),
    )
    row = by_setting(table)["s=0.5 adaptive"]
    assert row["clips"] == "2 of 2" and row["own world_agreement"] == pytest.approx(0.7)
    unnamed = [{**r, "run_id": "x", "score_world_agreement": 0.0} for r in clips(1)]
    (table,) = make("table2", sparsity_sweep(), unnamed)
    assert by_setting(table)["s=0.5 adaptive"]["own world_agreement"] == pytest.approx(0.7)
    assert "left out: 1 finished clips made with other settings" in table.notes
    (table,) = make("table2", sparsity_sweep(), clips(2, sparsity=0.5))  # recorded twice
    assert by_setting(table)["s=0.5 adaptive"]["clips"] == "2 of 2"


OTHER = {  # one other value for every later knob, as recipes hold it
    "rope": "ntk",
    "temperature": 1.05,
    "shift_high": 3.0,
    "adain": True,
    "stages": [[[48, 72], 12], [[64, 96], 6]],
    "dtype": "bfloat16",
    "fp8": True,
    "vae_tile": [32, 16],
    "guidance_2": 2.0,
    "pipeline": {"adapters": [["transformer", "style", 1.0, "abc"]]},
    "input": "0123456789ab",
}
EVERY = ("dtype", "fp8", "vae_tile", "guidance_2", "pipeline")  # decide the pixels of all methods


def stored(runs_dir, run_id, count, recipe, **record):
    """A run in a store, of clips p0, p1, ..., whose recipe and records hold this too; None: lack it."""
    folder = finished_run(runs_dir, [(f"p{i}", 0) for i in range(count)], run_id)
    for path in folder.glob("records/*.json"):
        made = json.loads(path.read_text())
        made["recipe"] |= {"method": "s2flow", "steps": 20, "t_i": 8, "solver": "lri"}
        made["recipe"] |= {"handoff": "image"} | recipe
        made["recipe"] = {k: v for k, v in made["recipe"].items() if v is not None}
        path.write_text(json.dumps(made | record))


@pytest.mark.parametrize("knob", sorted(set(ADDED_FIELDS) - {"params", "scheduler"}))
def test_a_row_never_mixes_values_of_a_knob_that_old_records_lack(knob, tmp_path):
    """Where it is not recorded, it has the value that the first records mean."""
    for order, count in ((1, 1), (2, 1)):
        stored(tmp_path, f"old{order}", count, {"order": order})
    stored(tmp_path, "new3", 1, {"order": 3, knob: OTHER[knob]})
    (table,) = make_tables("table3", load_records(tmp_path))
    assert [row["run"] for row in table.rows] == ["old1", "old2", None]
    assert "left out: 1 finished clips made with other settings" in table.notes
    assert not any(f"{knob}=" in n for n in table.notes)

    stored(tmp_path, "new2", 2, {"order": 2, knob: OTHER[knob]})
    (table,) = make_tables("table3", load_records(tmp_path))
    assert [row["run"] for row in table.rows] == [None, "new2", "new3"]
    assert any(n.startswith("held: ") and f"{knob}=" in n for n in table.notes)

    for method, count in (("cascade", 2), ("native", 1)):  # who does not read it stays comparable
        own = {knob: OTHER[knob]} if method == "cascade" else {"t_i": None, "handoff": None}
        stored(tmp_path, method, count, {"method": method} | own)
    (table,) = make_tables("table1", load_records(tmp_path))
    row = by_setting(table)["native"]
    assert row["run"] == (None if knob in (*EVERY, *methods.native.KNOBS) else "native")


def test_failed_clips_are_counted_but_never_averaged():
    bad = clips(1, sparsity=0.25, status="failed", score_world_agreement=0.0)
    bad[0]["prompt"] = "p2"
    (table,) = make("table2", sparsity_sweep(), bad)
    row = by_setting(table)["s=0.25 adaptive"]
    assert row["clips"] == "2 of 3" and row["own world_agreement"] == pytest.approx(0.7)
    assert "s=0.25 adaptive: 1 clips failed" in table.notes


def test_a_failed_record_without_knobs_makes_no_row():
    bare = {"run_id": "x", "prompt": "p9", "seed": 0, "status": "failed"}
    bare |= {k: BASE[k] for k in ("backbone", "steps", "height", "width", "frames")}
    for name in tables.TABLES:
        (table,) = make(name, sparsity_sweep(), [bare])
        assert not any("None" in row["setting"] for row in table.rows)


def test_rows_over_different_clips_and_devices_are_flagged():
    (table,) = make("table2", clips(3, sparsity=0.25), clips(2, sparsity=0.5, device="cuda"))
    cautions = [n for n in table.notes if n.startswith("CAUTION")]
    assert len(cautions) == 2 and "not paired" in cautions[0]
    (table,) = make("table2", sparsity_sweep())
    assert not [n for n in table.notes if n.startswith("CAUTION")]


def test_a_reused_lr_flow_is_said_because_its_seconds_are_of_another_time(tmp_path):
    """From what the runner records: True, False, and nothing for a method without LR flow."""
    methods = {"cascade": False, "macs": True, "native": None}
    for name, reused in methods.items():
        lr = {} if reused is None else {"low_flow_reused": reused}
        stored(tmp_path, name, 2, {"method": name}, **lr)
    (table,) = make_tables("table1", load_records(tmp_path))
    assert any(n.startswith("2 of 4 clips reused an LR flow") for n in table.notes)
    (table,) = make("table1", clips(low_flow_reused=False), clips(method="cascade"))
    assert not any("reused" in n for n in table.notes)


@pytest.mark.parametrize("word", ["nan", "black", "frozen"])
def test_clips_that_ended_badly_are_flagged(word, tmp_path):
    stored(tmp_path, "one", 3, {"order": 1}, outcome="ok")
    stored(tmp_path, "two", 3, {"order": 2}, outcome="ok")
    path = next(tmp_path.glob("two/records/*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"outcome": word}))
    (table,) = make_tables("table3", load_records(tmp_path))
    cautions = [n for n in table.notes if n.startswith("CAUTION")]
    assert cautions == [f"CAUTION: of the 3 clips of order 2 1 {word}"]


def test_scores_by_different_metrics_are_flagged(tmp_path):
    def cautions(*metrics, name="highres"):
        for order, metric in enumerate(metrics, 1):
            shutil.rmtree(tmp_path / f"run{order}", ignore_errors=True)
            scorers = {name: {"metric": metric}}
            stored(tmp_path, f"run{order}", 1, {"order": order}, scorers=scorers)
        (table,) = make_tables("table3", load_records(tmp_path))
        return [n for n in table.notes if n.startswith("CAUTION")]

    assert cautions("abc", "abc") == []
    (caution,) = cautions("abc", "def")
    assert "different scorers" in caution and "python -m s2flow.score" in caution
    assert cautions("abc", "def", name="fidelity") == []  # another reference makes another metric


# -- scores -----------------------------------------------------------------------------------


def test_temporal_visual_mean_wait_for_all_their_dimensions():
    (table,) = make("table2", sparsity_sweep())
    row = by_setting(table)["s=0.5 adaptive"]
    assert row["Temporal"] is row["Visual"] is row["Mean"] is None
    assert any("not scored: motion_smoothness" in n for n in table.notes)

    s2flow = next(r for r in PAPER["table1"] if r["method"] == "s2flow")
    scored = {f"score_{d}": s2flow[d] for d in metrics.SIX}
    (table,) = make("table2", sparsity_sweep(**scored))
    row = by_setting(table)["s=0.5 adaptive"]
    for title in ("Temporal", "Visual", "Mean"):
        assert row[title] == pytest.approx(theirs(row, title), abs=1e-4 + 1e-9)


def test_only_vbench_dimensions_are_headed_vbench():
    extra = {"score_detail": 1.0, "score_fidelity_psnr": 30.0, "score_imaging_quality_proxy": 0.5}
    (table,) = make("table2", sparsity_sweep(**extra))
    headed = {c for c in table.rows[0] if c.startswith("VBench ")}
    own = {c for c in table.rows[0] if c.startswith("own ")}
    assert headed == {"VBench temporal_flickering"}
    names = ("world_agreement", "detail", "fidelity_psnr", "imaging_quality_proxy")
    assert own == {f"own {name}" for name in names}
    assert len(notes.VBENCH) == 16


def test_a_score_over_some_of_the_clips_says_so():
    rows = sparsity_sweep()
    rows[0]["score_world_agreement"] = math.nan
    (table,) = make("table2", rows)
    assert "s=0.25 adaptive: world_agreement is over 1 of 2 clips" in table.notes


def test_absent_columns_leave_dashes():
    absent = ["realised_density", "seconds_lr", "device", "commit", "density", "frames", "solver"]
    (table,) = make_tables("table2", pd.DataFrame(sparsity_sweep()).drop(columns=absent))
    row = by_setting(table)["s=0.5 adaptive"]
    assert row["f"] is None and row["clips"] == "2 of 2"
    assert sheet.DASH in tables.FORMATS["text"]([table])


# -- what is a real difference ----------------------------------------------------------------


def scored(values, seeds=1, **changed):
    """Clips of one run with these agreements, one per prompt; later seeds score a little higher."""
    return [
        {**r, "prompt": f"p{i}", "seed": s, "score_world_agreement": v + 0.01 * s}
        for i, v in enumerate(values)
        for s, r in enumerate(clips(seeds, **changed))
    ]


EASY = [0.3 + 0.05 * i for i in range(8)]  # prompts differ by more than the rows
HARD = [v - 0.02 - 0.001 * i for i, v in enumerate(EASY)]
SHUFFLED = [v + 0.02 * (-1) ** i for i, v in enumerate(EASY)]


def test_real_differences_from_the_papers_setting_are_marked():
    (table,) = make(
        "table2",
        scored(HARD, sparsity=0.25),
        scored(EASY, sparsity=0.5),
        scored(SHUFFLED, sparsity=0.75),
    )
    assert table.reference == "s=0.5 adaptive"
    assert list(table.differences) == ["s=0.25 adaptive", "s=0.75 adaptive"]
    worse = table.differences["s=0.25 adaptive"]["own world_agreement"]
    assert worse.mean == pytest.approx(-0.0235) and worse.n == 8 and worse.wins == 0
    assert worse.is_real and worse.high < 0
    assert not table.differences["s=0.75 adaptive"]["own world_agreement"].is_real
    text = tables.FORMATS["text"]([table])
    assert "| minus s=0.5 adaptive |" in text
    first, second = (
        [line for line in text.splitlines() if line.startswith(f"| {s} adaptive")]
        for s in ("s=0.25", "s=0.75")
    )
    assert "0.4515*" in first[0] and "-0.0235* [" in first[1] and "wins 0%" in first[1]
    assert "*" not in second[0] + second[1] and "| 8 " in second[1]
    assert any(n.startswith("minus s=0.5 adaptive: ") for n in table.notes)


def test_each_table_is_compared_with_its_row_of_the_papers_setting():
    others = {
        "table1": [clips(method="native"), clips(method="cascade")],
        "table2": [clips(sparsity=0.25), clips(windows="fixed")],
        "table3": [clips(order=1), clips(solver="ab2")],
        "table4": [clips(t_i=16), clips(t_i=4)],
    }
    names = ("s2flow", "s=0.5 adaptive", "order 2", "t_i=12 of 20")  # 12 of 20 is 30 of 50
    for (name, runs), reference in zip(others.items(), names, strict=True):
        (table,) = make(name, *runs, clips())
        assert table.reference == reference, name
        assert len(table.differences) == 2
    (table,) = make("table2", clips(sparsity=0.75), clips(sparsity=0.25))
    assert table.reference == "s=0.25 adaptive"  # the first row, where nobody ran the paper's
    (table,) = make("table2", clips())
    assert not table.differences and "minus" not in tables.FORMATS["text"]([table])


def test_seeds_of_a_prompt_are_one_witness():
    once = make("table2", scored(HARD, sparsity=0.25), scored(EASY))[0]
    often = make("table2", scored(HARD, 4, sparsity=0.25), scored(EASY, 4))[0]
    a, b = (t.differences["s=0.25 adaptive"]["own world_agreement"] for t in (once, often))
    assert (a.n, a.clips, b.n, b.clips) == (8, 8, 8, 32)
    assert (a.low, a.high) == pytest.approx((b.low, b.high))


def test_only_shared_clips_are_compared_and_lost_prompts_counted():
    (table,) = make("table2", scored(HARD[:6], sparsity=0.25), scored(EASY))
    found = table.differences["s=0.25 adaptive"]["own world_agreement"]
    assert (found.n, found.dropped) == (6, 2)
    assert "| 6 (2 dropped) " in tables.FORMATS["text"]([table])


def test_mean_is_compared_only_where_all_six_dimensions_are_there():
    six = {f"score_{d}": 0.5 for d in metrics.SIX}
    better = clips(8, sparsity=0.25, **dict.fromkeys(six, 0.6))
    del better[0]["score_imaging_quality"]
    (table,) = make("table2", better, clips(8, **six))
    found = table.differences["s=0.25 adaptive"]
    assert found["Mean"].mean == pytest.approx(0.1)
    assert [found[c].n for c in ("Mean", "Visual", "Temporal")] == [7, 7, 8]
    assert ", 7 prompts" in tables.FORMATS["text"]([table])


def test_augmented_prompts_of_two_entries_stay_two_prompts():
    rows = [*clips(8), *clips(8, sparsity=0.25)]
    for i, r in enumerate(rows):
        r |= {"prompt": "one long text", "original_prompt": f"entry {i % 8}"}
    (table,) = make("table2", rows)
    assert table.differences["s=0.25 adaptive"]["own world_agreement"].n == 8
    assert by_setting(table)["s=0.5 adaptive"]["clips"] == "8 of 8"
    assert any(n.startswith("ours: 8 prompts, 1 seeds") for n in table.notes)


def test_the_reference_can_be_named_and_a_wrong_name_is_one_line(monkeypatch, tmp_path, capsys):
    frame = pd.DataFrame([*scored(HARD, sparsity=0.25), *scored(EASY)])
    run = frame["run_id"][0]
    assert run_main(monkeypatch, tmp_path, frame, "table2", "--reference", run) == 0
    assert "minus s=0.25 adaptive" in capsys.readouterr().out
    assert run_main(monkeypatch, tmp_path, frame, "table2", "--reference", "abc") == 1
    out, err = capsys.readouterr()
    assert not out and "--reference abc" in err and run in err and err.count("\n") == 1


def test_csv_has_the_differences_beside_the_scores(monkeypatch, tmp_path, capsys):
    frame = pd.DataFrame([*scored(HARD, sparsity=0.25), *scored(EASY)])
    assert run_main(monkeypatch, tmp_path, frame, "table2", "--format", "csv") == 0
    rows = {r["setting"]: r for r in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    worse, reference = rows["s=0.25 adaptive"], rows["s=0.5 adaptive"]
    assert float(worse["own world_agreement minus"]) == pytest.approx(-0.0235)
    assert worse["own world_agreement real"] == "1" and worse["minus"] == "s=0.5 adaptive"
    assert worse["own world_agreement prompts"] == "8"
    assert float(worse["own world_agreement low"]) < float(worse["own world_agreement high"]) < 0
    assert reference["own world_agreement minus"] == ""


# -- output -----------------------------------------------------------------------------------


def run_main(monkeypatch, tmp_path, frame, *argv):
    store = types.ModuleType("s2flow.store")
    store.load_records = lambda runs_dir: frame
    monkeypatch.setitem(sys.modules, "s2flow.store", store)
    return tables.main([*argv, "--runs", str(tmp_path)])


def test_markdown_keeps_the_papers_columns_right_and_labelled(monkeypatch, tmp_path, capsys):
    assert run_main(monkeypatch, tmp_path, pd.DataFrame(sparsity_sweep()), "table2") == 0
    out = capsys.readouterr().out
    assert "backbone micro, 20 steps, 64×96 (height×width), 8 frames" in out
    header = next(line for line in out.splitlines() if line.startswith("| setting"))
    columns = [c.strip() for c in header.strip("|").split("|")]
    labelled = [c.startswith("HunyuanVideo 8×H800: ") for c in columns]
    assert labelled == sorted(labelled) and sum(labelled) == 5
    widths = {line.count("|") for line in out.split("\n\n")[1].splitlines()}
    assert len(widths) == 1
    assert "VBench dimensions: temporal_flickering; our own, not VBench's: world_agreement" in out


def test_csv_reads_back_with_unrounded_numbers(monkeypatch, tmp_path, capsys):
    frame = pd.DataFrame(
        [*sparsity_sweep(score_world_agreement=1 / 3), *clips(1, backbone="tiny")]
    )
    assert run_main(monkeypatch, tmp_path, frame, "table2", "--format", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {r["backbone"] for r in rows} == {"micro", "tiny"}
    quarter = next(r for r in rows if r["setting"] == "s=0.25 adaptive")
    assert float(quarter["own world_agreement"]) == pytest.approx(1 / 3, abs=1e-9)
    assert quarter["run"] and float(theirs(quarter, "Mean")) == 0.6797
    assert None not in quarter


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame(),
        pd.DataFrame(clips(method="cascade")),
        pd.DataFrame(clips(status="failed")),
    ],
)
def test_nothing_to_show_prints_the_command_that_makes_it(monkeypatch, tmp_path, capsys, frame):
    assert run_main(monkeypatch, tmp_path, frame, "table2") == 1
    captured = capsys.readouterr()
    assert "python run.py experiment=table2" in captured.err and not captured.out


def test_a_missing_store_is_nothing_too(tmp_path, capsys, monkeypatch):
    assert tables.main(["table4", "--runs", str(tmp_path / "none")]) == 1
    err = capsys.readouterr().err
    assert f"python run.py experiment=table4 runs_dir={tmp_path / 'none'}\n" in err
    assert "/none/, which does not exist; make them" in err
    run = finished_run(tmp_path, 1)
    assert tables.main(["table4", "--runs", str(run)]) == 1
    assert "is one run; type the folder that holds it" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert tables.main(["table4"]) == 1  # where run.py writes unless it is told
    assert capsys.readouterr().err.endswith("python run.py experiment=table4\n")


def test_a_score_on_another_scale_is_one_line(monkeypatch, tmp_path, capsys):
    scored = {f"score_{d}": 0.5 for d in metrics.SIX} | {"score_imaging_quality": 66.0}
    frame = pd.DataFrame(sparsity_sweep(**scored))
    assert run_main(monkeypatch, tmp_path, frame, "table2") == 1
    assert "divide by 100" in capsys.readouterr().err


def test_knobs_that_tables_infer_from_another_are_read_by_the_same_methods():
    modules = {name: methods.method(name) for name in PAPER_METHODS}
    for name, module in modules.items():
        row = {"method": name} | {k: k in module.KNOBS or None for k in ("t_i", "handoff")}
        for knob in ("rope", "temperature", "shift_high", "adain", "stages"):
            assert clips_module.reads(row, knob) == (knob in module.KNOBS), f"{name}: {knob}"
