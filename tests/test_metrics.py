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
    d, zero = [0.1, 0.4, -0.2, 0.3, 0.0], [0.0] * 5
    narrow, wide = (metrics.paired_difference(d, zero, level=x) for x in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def simulated(n, rng, trials=3000):
    """Differences (trials, n) of many kinds, and the true mean of each."""
    three = (trials, n, 3)  # seeds of a prompt, which has a level of its own
    levels = rng.choice([-1, 0, 1], p=(0.1, 0.6, 0.3), size=(trials, n, 1))
    return {
        "normal": (rng.normal(0.3, 1, (trials, n)), 0.3),
        "exponential": (rng.exponential(1, (trials, n)) - 0.7, 0.3),
        ".1 .5 .4": (rng.choice([-1.0, 0, 1], p=(0.1, 0.5, 0.4), size=(trials, n)), 0.3),
        ".1 .7 .2": (rng.choice([-1.0, 0, 1], p=(0.1, 0.7, 0.2), size=(trials, n)), 0.1),
        "3 seeds": (rng.normal(size=(trials, n, 1)) + 0.3 + rng.normal(0, 0.5, three), 0.3),
        "3 seeds, -1/0/+1": (levels * (rng.random(three) < 0.7), 0.2 * 0.7),
    }


def coverage(d, truth):
    low, high = metrics.bootstrap_interval(d, 0.95, resamples=2000)
    assert np.isfinite(low).all() and np.isfinite(high).all()
    return ((low <= truth + 1e-12) & (truth - 1e-12 <= high)).mean()


RARE = {".02 .96 .02": (0.02, 0.96, 0.02), ".05 .90 .05": (0.05, 0.9, 0.05)}


@pytest.mark.parametrize("chances", RARE.values(), ids=RARE)
def test_no_difference_between_runs_that_rarely_differ_passes_for_one(chances):
    rng = np.random.default_rng(1)
    d = rng.choice([-1.0, 0, 1], p=chances, size=(3000, 64))
    got = coverage(d, 0)
    print(64, chances, f"{got:.3f}")
    assert got >= 0.94


@pytest.mark.parametrize("n", [16, 64])
def test_intervals_cover_the_truth_as_often_as_they_say(n):
    for kind, (d, truth) in simulated(n, np.random.default_rng(1)).items():
        by_prompt = d.mean(axis=2) if d.ndim == 3 else d
        got = coverage(by_prompt, truth)
        print(n, kind, f"{got:.3f}")
        assert 0.92 <= got <= 0.98, f"{kind}, n={n}: {got:.3f}"


def test_of_many_prompts_the_normal_interval_stands_for_resampling(monkeypatch):
    draws = simulated(metrics.MANY, np.random.default_rng(1), trials=200)
    for kind in ("normal", "exponential"):  # of the others, too few differ
        d, truth = draws[kind]
        assert 0.92 <= coverage(d, truth) <= 0.98, kind
        normal = np.stack(metrics.bootstrap_interval(d[0]))
        with monkeypatch.context() as patch:
            patch.setattr(metrics, "MANY", math.inf)
            resampled = np.stack(metrics.bootstrap_interval(d[0]))
        width = normal[1] - normal[0]
        assert np.abs(normal - resampled).max() < 0.05 * width and (normal != resampled).all()


def test_seeds_taken_for_prompts_would_claim_too_much():
    d, truth = simulated(64, np.random.default_rng(1))["3 seeds"]
    assert coverage(d[:500].reshape(500, -1), truth) < 0.85


def test_mappings_pair_by_prompt_whatever_their_order():
    a = {"x": 1.0, "y": 2.0, "only a": 9.0, "failed": None}
    b = {"failed": 1.0, "y": 1.5, "x": 0.5, "only b": 9.0}
    got = metrics.paired_difference(a, b)
    assert got.mean == pytest.approx(0.5) and got.n == 2 and got.dropped == 3


def test_seeds_are_averaged_within_the_prompt_and_only_those_of_both_sides():
    a = {("x", 0): 0.9, ("x", 1): 0.5, ("x", 2): 9.0, ("y", 0): 0.3, ("z", 0): 1.0}
    b = {("x", 0): 0.5, ("x", 1): 0.3, ("x", 3): 9.0, ("y", 0): 0.3, ("z", 0): None}
    got = metrics.paired_clips(a, b)
    assert got.mean == pytest.approx((0.3 + 0.0) / 2)  # x counts once, whatever its seeds
    assert (got.n, got.dropped, got.clips) == (2, 1, 3)
    assert (got.wins, got.ties) == (0.75, 1)
    one = metrics.paired_difference({"x": 0.7, "y": 0.3}, {"x": 0.4, "y": 0.3})
    assert (got.low, got.high) == pytest.approx((one.low, one.high))


def test_order_of_records_does_not_move_the_interval():
    rng = np.random.default_rng(5)
    a = {(f"p{i}", s): x for (i, s), x in np.ndenumerate(rng.normal(size=(12, 2)))}
    b = dict.fromkeys(a, 0.1)
    mixed = dict(reversed(a.items()))
    assert metrics.paired_clips(a, b) == metrics.paired_clips(mixed, b)


def test_wins_count_ties_half_and_rounding_is_no_win():
    a, b = [0.1 + 0.2, 0.5, 0.1, 0.9], [0.3, 0.4, 0.4, 0.2]
    got = metrics.paired_difference(a, b)
    assert (got.wins, got.ties) == (0.625, 1)
    assert metrics.paired_difference(b, a).wins == 0.375


def test_ties_only_give_a_finite_interval_around_zero():
    got = metrics.paired_difference([0.4] * 9, [0.4] * 9)
    assert (got.mean, got.low, got.high, got.wins, got.ties) == (0, 0, 0, 0.5, 9)
    assert not got.is_real
    got = metrics.paired_difference([1.0] + [0.0] * 8, [0.0] * 9)  # most resamples see no win
    assert -math.inf < got.low < got.mean < got.high < math.inf and not got.is_real
    one = metrics.paired_difference([1.0] + [0.0] * 15, [0.0] * 16)  # exact (binomial): up to .302
    assert one.high == pytest.approx(0.302, abs=0.1) and one.high > 3 / 16  # percentile: 3 of 16


def test_a_difference_is_real_where_its_interval_leaves_out_zero_over_enough_prompts():
    rng = np.random.default_rng(0)
    d = rng.normal(1, 0.1, 6)
    assert metrics.paired_difference(d, np.zeros(6)).is_real
    assert metrics.paired_difference(-d, np.zeros(6)).is_real
    few = metrics.paired_difference(d[:5], np.zeros(5))
    assert few.low > 0 and not few.is_real  # five of one sign are chance once in sixteen
    assert not metrics.paired_difference(d - 1, np.zeros(6)).is_real
    tied = metrics.paired_difference([*d[:5], *[0.0] * 3], np.zeros(8))
    assert tied.low > 0 and not tied.is_real  # ties are no witnesses
    assert not metrics.paired_difference([1.0], [0.0]).is_real


def test_runs_are_compared_by_score_and_aggregates_only_where_all_six_are_there():
    better = {name: value + 0.06 for name, value in ROW.items()}
    partial = {name: v for name, v in better.items() if name != "motion_smoothness"}
    a = {("x", 0): better, ("y", 0): better, ("z", 0): partial}
    b = dict.fromkeys(a, ROW)
    names = ("mean", "temporal", "visual", "imaging_quality", "world_agreement")
    got = metrics.paired_runs(a, b, names)
    assert list(got) == list(names)
    assert got["mean"].mean == pytest.approx(0.06)
    assert [got[k].n for k in names] == [2, 2, 3, 3, 0]
    assert got["mean"].dropped == got["temporal"].dropped == 1
    assert got["world_agreement"].mean is None and got["world_agreement"].wins is None
    with pytest.raises(ValueError, match="divide by 100"):
        metrics.paired_runs({("x", 0): {**ROW, "imaging_quality": 66}}, b, ["mean"])


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
