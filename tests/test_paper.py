"""The paper's own rows (`experiments/paper.json`) follow the formulas of `s2flow.metrics`."""

import json
from pathlib import Path

import pytest

from s2flow import metrics

PAPER = json.loads(
    (Path(__file__).parents[1] / "experiments" / "paper.json").read_text(encoding="utf-8")
)
# Inputs were rounded to 4 digits before the mean was, so the last digit may differ.
TOLERANCE = 1e-4 + 1e-9
AGGREGATED = [
    pytest.param(row, id=f"{table}-{i}")
    for table in ("table2_sparsity", "table3_order", "table4_t_i")
    for i, row in enumerate(PAPER[table])
    if "mean" in row
]


@pytest.mark.parametrize("row", PAPER["table1"], ids=lambda row: row["method"])
def test_table1_means_are_means_of_six(row):
    assert metrics.mean(row) == pytest.approx(row["mean"], abs=TOLERANCE)


@pytest.mark.parametrize("row", AGGREGATED)
def test_ablation_means_are_four_temporal_and_two_visual(row):
    mean = (4 * row["temporal"] + 2 * row["visual"]) / 6
    assert mean == pytest.approx(row["mean"], abs=TOLERANCE)


def test_the_default_setting_is_one_row_of_every_table():
    s2flow = next(row for row in PAPER["table1"] if row["method"] == "s2flow")
    setting = PAPER["setting"]
    default = {
        "table2_sparsity": ("sparsity", setting["sparsity"]),
        "table3_order": ("order", setting["order"]),
        "table4_t_i": ("t_i", setting["t_i"]),
    }
    for table, (knob, value) in default.items():
        row = next(row for row in PAPER[table] if row[knob] == value)
        assert row["temporal"] == pytest.approx(metrics.temporal(s2flow), abs=TOLERANCE)
        assert row["visual"] == pytest.approx(metrics.visual(s2flow), abs=TOLERANCE)
        assert row["mean"] == s2flow["mean"]


def test_eleven_ablation_rows_have_numbers_and_the_fixed_window_has_none():
    assert len(AGGREGATED) == 11
    (fixed,) = [row for row in PAPER["table2_sparsity"] if row["window"] == "fixed"]
    assert "mean" not in fixed and "black frames" in fixed["outcome"]


def test_figure6_gives_the_speedup_that_the_text_claims():
    seconds = {
        (r["method"], *r["resolution"]): r["seconds"]
        for r in PAPER["figure6_seconds_per_10_steps"]
    }
    native, ours = seconds[("native", 2560, 1536)], seconds[("s2flow", 2560, 1536)]
    assert native / ours == pytest.approx(7.6, abs=0.05)
