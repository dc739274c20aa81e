"""Votes: read back, win rates over prompts, Bradley-Terry against closed form and simulation."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from s2flow.errors import UserError
from s2flow.report import preferences

NAMES = list("abcd")
METHODS = {"a": "N", "b": "S", "c": "S"}
RUNS = {x: {"label": f"label {x}", "method": m, "recipe": {}} for x, m in METHODS.items()}
EMPTY = {"format": "s2flow votes 1", "session": "", "voter": "", "runs": {}}


def saved(path, votes, session="s", voter="me", **other):
    """A file as the page saves it; votes: (prompt, left, right, choice)."""
    full = [
        {"prompt": p, "original": None, "seed": 0, "left": x, "right": y, "choice": c}
        | {"seconds": 1.5, "at": "2026-01-01T00:00:00.000Z"}
        for p, x, y, c in votes
    ]
    said = {"format": "s2flow votes 1", "session": session, "voter": voter, "runs": RUNS}
    path.write_text(json.dumps(said | {"votes": full} | other))
    return path


def drawn(theta, prompts, each, rng, spread=0.0):
    """Votes by the model as `bradley_terry` takes them: a, b, points of a, prompts.

    spread: of a prompt's own taste for each, which its votes share.
    """
    taste = np.asarray(theta) + spread * rng.standard_normal((prompts, len(theta)))
    clusters = np.repeat(np.arange(prompts), each)
    a = rng.integers(0, len(theta), len(clusters))
    b = (a + rng.integers(1, len(theta), len(clusters))) % len(theta)
    chance = 1 / (1 + np.exp(taste[clusters, b] - taste[clusters, a]))
    return a, b, (rng.random(len(a)) < chance).astype(float), clusters


def table(a, b, points, clusters):
    """The same as `read_votes` gives it, as far as rates and ranking look."""
    sides = {"left_run": [NAMES[i] for i in a], "right_run": [NAMES[i] for i in b]}
    own = {"points": points, "prompt": clusters.astype(str), "original": None}
    return pd.DataFrame(sides | own)


def test_votes_are_read_with_every_name_and_a_session_saved_twice_counts_once(tmp_path):
    votes = [("p", "a", "b", "left"), ("q", "b", "a", "tie"), ("p", "c", "a", "right")]
    files = [
        saved(tmp_path / "early.json", votes[:1]),
        saved(tmp_path / "late.json", votes),
        saved(tmp_path / "other.json", votes[:1], session="t", voter="you"),
    ]
    for order in (files, files[::-1]):
        read = preferences.read_votes(*order)
        assert len(read) == 4 and set(read["voter"]) == {"me", "you"}
    first = preferences.read_votes(files[1]).iloc[0]
    assert (first["left_run"], first["left_label"], first["left_method"]) == ("a", "label a", "N")
    assert list(preferences.read_votes(files[1])["points"]) == [1.0, 0.5, 0.0]


def test_the_win_rate_is_a_mean_over_prompts_whichever_side_it_was_on(tmp_path):
    votes = [("p", "a", "b", "left"), ("p", "b", "a", "right"), ("p", "a", "b", "tie")]
    votes += [("q", "b", "a", "left")]
    read = preferences.read_votes(saved(tmp_path / "v", votes))
    (row,) = preferences.win_rates(read, "run").to_dict("records")
    assert row["rate"] == pytest.approx((2.5 / 3 + 0) / 2)
    assert (row["votes"], row["prompts"]) == (4, 2)
    assert (row["wins"], row["ties"], row["losses"]) == (2, 1, 1)
    assert 0 <= row["low"] <= row["rate"] <= row["high"] <= 1 and not row["decided"]


def test_votes_on_one_prompt_are_no_independent_witnesses():
    frame = table(*drawn([0.3, 0.0], 30, 1, np.random.default_rng(0)))
    once = preferences.win_rates(frame, "run").iloc[0]
    many = preferences.win_rates(pd.concat([frame] * 8, ignore_index=True), "run").iloc[0]
    assert many["votes"] == 8 * once["votes"]
    assert (many["low"], many["high"]) == (once["low"], once["high"])
    assert once["high"] - once["low"] > 0.25


def test_unanimous_prompts_have_the_exact_interval_of_clopper_and_pearson():
    def ends(n, points):
        frame = table(*(np.full(n, x) for x in (0, 1, points)), np.arange(n))
        row = preferences.win_rates(frame, "run").iloc[0]
        return row["low"], row["high"]

    assert ends(8, 1.0) == (pytest.approx(0.025 ** (1 / 8)), 1.0)
    low, high = ends(8, 0.5)
    assert low + high == pytest.approx(1) and high == pytest.approx(1 - 0.025 ** (1 / 8) / 2)
    assert all(map(math.isnan, ends(1, 1.0)))


def test_two_methods_have_the_closed_form_with_ties_as_halves():
    a, b = np.array([0] * 10), np.array([1] * 10)
    points = np.array([1.0] * 6 + [0.5] * 2 + [0.0] * 2)
    theta, low, high = preferences.bradley_terry(a, b, points, range(10), ["a", "b"])
    odds = math.log(7 / 3)
    assert theta == pytest.approx([odds / 2, -odds / 2], abs=1e-9)
    # Its variance by hand: V(log odds) = sum (points - p)^2 / (n p (1 - p))^2, times n / (n - 1).
    v = ((points - 0.7) ** 2).sum() / (10 * 0.7 * 0.3) ** 2 * 10 / 9
    half = 1.959964 * math.sqrt(v) / 2
    assert high - theta == pytest.approx([half, half], rel=1e-5)
    assert theta - low == pytest.approx([half, half], rel=1e-5)


def test_three_methods_are_found_again_and_their_intervals_cover():
    truth, rng = np.array([0.5, 0.1, -0.6]), np.random.default_rng(1)
    found = [preferences.bradley_terry(*drawn(truth, 60, 3, rng), NAMES[:3]) for _ in range(400)]
    theta, low, high = map(np.array, zip(*found, strict=True))
    assert np.abs(theta.mean(0) - truth).max() < 0.03
    assert 0.92 < ((low < truth) & (truth < high)).mean() < 0.97


def test_intervals_hold_where_votes_on_a_prompt_hang_together():
    """Of 10 votes a prompt that share its taste; taken for single ones they would promise too much."""
    rng, clustered, single = np.random.default_rng(2), [], []
    for _ in range(300):
        a, b, points, prompts = drawn([0.0] * 3, 40, 10, rng, spread=1.5)
        for kept, clusters in ((clustered, prompts), (single, range(len(a)))):
            _, low, high = preferences.bradley_terry(a, b, points, clusters, NAMES[:3])
            kept.append((low < 0) & (high > 0))
    assert np.mean(clustered) > 0.91 and np.mean(single) < 0.8


def test_the_ranking_agrees_with_the_zermelo_iteration():
    a, b, points, prompts = drawn([1.0, 0.0, -1.0, 0.2], 50, 4, np.random.default_rng(3))
    frame = table(a, b, points, prompts)
    found = preferences.ranking(frame, "run").set_index("run")["theta"]
    w, pi = np.zeros((4, 4)), np.ones(4)
    np.add.at(w, (a, b), points)
    np.add.at(w, (b, a), 1 - points)
    for _ in range(2000):  # Zermelo 1929: pi_i = W_i / sum_j n_ij / (pi_i + pi_j)
        pi = w.sum(1) / ((w + w.T) / (pi[:, None] + pi[None])).sum(1)
        pi /= np.exp(np.log(pi).mean())
    assert found[NAMES].to_numpy() == pytest.approx(np.log(pi), abs=1e-8)


def test_no_ranking_where_the_best_fit_is_infinitely_far(tmp_path, capsys):
    votes = [(str(i), "a", "b", "left") for i in range(7)] + [("x", "b", "c", "tie")]
    path = saved(tmp_path / "v.json", votes)
    with pytest.raises(UserError, match="no chain of wins leads from label b to label a"):
        preferences.ranking(preferences.read_votes(path))
    preferences.main([str(path)])
    out = capsys.readouterr().out
    assert "label a label b" in " ".join(out.split()) and "no ranking: no chain of wins" in out


def test_the_command_prints_rates_ranking_and_the_table_of_votes(tmp_path, capsys):
    rng = np.random.default_rng(4)
    pairs = [("a", "b"), ("b", "c"), ("c", "a")]
    choices = iter(rng.choice(["left", "right", "tie"], 60))
    votes = [(str(i), x, y, next(choices)) for i in range(20) for x, y in pairs]
    path = saved(tmp_path / "v.json", votes)
    preferences.main([str(path), "--csv", str(tmp_path / "v.csv")])
    out = capsys.readouterr().out
    assert "60 votes on 20 prompts in 1 session(s)" in out and "theta" in out
    assert len(pd.read_csv(tmp_path / "v.csv")) == 60
    preferences.main([str(path), "--by", "method"])  # b and c are one method: no game
    assert "N S     40" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("{", "holds no votes"),
        ("[1]", "holds no votes"),
        ('{"format": "other"}', "holds no votes"),
        ('{"format": "s2flow votes 1"}', "is damaged"),
        (json.dumps(EMPTY | {"votes": [{}]}), "is damaged"),
        (json.dumps(EMPTY | {"votes": []}), "no vote"),
    ],
)
def test_what_is_no_file_of_votes_gets_one_line(tmp_path, capsys, content, said):
    path = tmp_path / "votes.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        preferences.main([str(path)])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and not out
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err
