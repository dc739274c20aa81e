"""Temporal, Visual, Mean and paired differences: never over fewer, never unpaired."""

import math

import numpy as np
import pytest

from s2flow import metrics

ROW = {
    "temporal_flickering": 0.9,
    "motion_smoothness": 0.8,
    "background_consistency": 0.7,
    "overall_consistency": 0.2,
    "aesthetic_quality": 0.5,
    "imaging_quality": 0.6,
}


def test_aggregates_weigh_six_dimensions_equally():
    assert metrics.temporal(ROW) == pytest.approx(0.65)
    assert metrics.visual(ROW) == pytest.approx(0.55)
    assert metrics.mean(ROW) == pytest.approx((4 * 0.65 + 2 * 0.55) / 6)


@pytest.mark.parametrize("missing", [None, math.nan, "absent"])
@pytest.mark.parametrize("name", metrics.SIX)
def test_a_missing_dimension_is_never_averaged_away(name, missing):
    row = dict(ROW)
    row.pop(name) if missing == "absent" else row.update({name: missing})
    assert metrics.mean(row) is None
    assert (metrics.temporal(row) is None) == (name in metrics.TEMPORAL)
    assert (metrics.visual(row) is None) == (name in metrics.VISUAL)


def test_scores_that_are_no_vbench_dimension_do_not_count():
    assert metrics.mean({**ROW, "world_agreement": 0.0, "detail": 1.0}) == metrics.mean(ROW)


def test_imaging_quality_on_its_per_video_scale_is_refused():
    with pytest.raises(ValueError, match="divide by 100"):
        metrics.visual({**ROW, "imaging_quality": 66.6})


def test_pairing_sees_a_difference_that_the_spread_over_prompts_hides():
    rng = np.random.default_rng(3)
    prompts = rng.uniform(0, 1, 100)  # prompts differ by far more than the methods do
    got = metrics.paired_difference(
        prompts + 0.003 + rng.normal(0, 0.002, 100), prompts, seed=0, level=0.95
    )
    assert got.low < got.mean < got.high
    assert got.low > 0 and got.high - got.low < 0.002
    assert got.n == 100 and got.dropped == 0 and got.level == 0.95


def test_sign_is_first_minus_second_and_seed_decides():
    a, b = [0.5, 0.6, 0.9], [0.1, 0.4, 0.6]
    one = metrics.paired_difference(a, b, seed=1)
    assert one.mean == pytest.approx(0.3)
    assert one == metrics.paired_difference(a, b, seed=1)
    other = metrics.paired_difference(b, a, seed=1)
    assert other.mean == pytest.approx(-0.3)
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low))


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        d = rng.normal(0.1, 1.0, 40)
        got = metrics.paired_difference(d, np.zeros(40), seed=trial)
        covered += got.low <= 0.1 <= got.high
    assert 86 <= covered <= 99  # nominal 95 of 100


def test_a_wider_level_gives_a_wider_interval():
    d, zero = [0.1, 0.4, -0.2, 0.3, 0.0], [0.0] * 5
    narrow = metrics.paired_difference(d, zero, level=0.5)
    wide = metrics.paired_difference(d, zero, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_mappings_pair_by_prompt_whatever_their_order():
    a = {"x": 1.0, "y": 2.0, "only a": 9.0, "failed": None}
    b = {"failed": 1.0, "y": 1.5, "x": 0.5, "only b": 9.0}
    got = metrics.paired_difference(a, b)
    assert got.mean == pytest.approx(0.5) and got.n == 2 and got.dropped == 3


def test_too_few_pairs_claim_no_interval():
    one = metrics.paired_difference([0.7, math.nan], [0.5, 0.1])
    assert one.mean == pytest.approx(0.2) and one.n == 1 and one.dropped == 1
    assert one.low is None and one.high is None
    assert metrics.paired_difference([], []).mean is None


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(ValueError, match="2 scores cannot be paired with 1"):
        metrics.paired_difference([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="two mappings"):
        metrics.paired_difference({"x": 0.1}, [0.1])
    with pytest.raises(ValueError, match="level=95"):
        metrics.paired_difference([0.1], [0.2], level=95)
