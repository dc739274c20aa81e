"""Blind votes of the report page, read back: win rates with intervals, and a Bradley-Terry ranking.

    python -m s2flow.preferences votes.json [more.json ...] [--by label|run|method] [--csv FILE]

A vote says which of two clips of one prompt and seed was better, or neither. Of two methods a and b

    win rate of a = mean over prompts of (mean over the prompt's votes of 1 won, 1/2 tied, 0 lost)

with a bootstrap interval over prompts (`s2flow.metrics`). Of more than two,

    P(a beats b) = 1 / (1 + exp(theta_b - theta_a)),   sum of theta = 0

(Bradley and Terry 1952), theta by maximum likelihood, a tie being half a win for each side. Its
intervals are theta +- z * sqrt(V) with the cluster-robust sandwich estimator V (White 1982), because
votes on one prompt, by several people or of several seeds, are not independent. All are at 95 %.
"""

import argparse
import json
import math
import sys
from collections.abc import Hashable, Iterable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from s2flow.errors import UserError, print_error
from s2flow.metrics import bootstrap_interval

FORMAT = "s2flow votes 1"
POINTS = {"left": 1.0, "tie": 0.5, "right": 0.0}  # of the left side
NAMES = ("run", "label", "method")  # columns that can be compared
STEPS, TOLERANCE = 100, 1e-10  # of Newton's method
LEVEL = 0.95


def read_votes(*paths: str | Path) -> pd.DataFrame:
    """One row per vote; of a session that was saved twice the longer file counts.

    Columns: file, voter, session, prompt, original, seed, choice (left, right, tie), points (of the
    left side: 1, 1/2, 0), seconds (until the vote), at, and left_<name>, right_<name> for run,
    label and method. Raises UserError for a file that the report page did not save.
    """
    sessions: dict[str, list[dict[str, Any]]] = {}
    for path in map(Path, paths):
        name, rows = _read(path)
        if len(rows) >= len(sessions.get(name, [])):
            sessions[name] = rows
    votes = [row for rows in sessions.values() for row in rows]
    if not votes:
        raise UserError(f"{' '.join(map(str, paths)) or 'no file'} holds no vote; vote first")
    return pd.DataFrame(votes)


def _read(path: Path) -> tuple[str, list[dict[str, Any]]]:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; type a file that the page saved") from None
    except ValueError:
        saved = None
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise UserError(f'{path} holds no votes (format "{FORMAT}"); save them from the page')
    try:
        who = {"file": str(path), "voter": str(saved["voter"]), "session": str(saved["session"])}
        return who["session"], [who | _vote(vote, saved["runs"]) for vote in saved["votes"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); save the votes again") from None


def _vote(vote: dict[str, Any], runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    row = {k: vote[k] for k in ("prompt", "original", "seed", "choice")}
    row |= {"points": POINTS[vote["choice"]], "seconds": vote["seconds"], "at": vote["at"]}
    for side in ("left", "right"):
        named = runs[vote[side]] | {"run": vote[side]}
        row |= {f"{side}_{name}": str(named[name]) for name in NAMES}
    return row


def win_rates(votes: pd.DataFrame, by: str = "label") -> pd.DataFrame:
    """Of every compared pair: votes, prompts, wins, ties, losses of `a`, its win rate, low and high.

    Rates are in [0, 1]. `decided`: the interval excludes 1/2, with votes that are no ties on at least
    6 prompts. Below two prompts there is no interval (NaN).
    """
    rows = []
    for (a, b), met in _games(votes, by).groupby(["a", "b"], sort=True):
        of_prompt = met.groupby("cluster", sort=True)["points"].mean().to_numpy()
        low, high = _interval(of_prompt)
        count = met["points"].map({1.0: "wins", 0.5: "ties", 0.0: "losses"}).value_counts()
        untied = met.loc[met["points"] != 0.5, "cluster"].nunique()
        rows.append(
            {"a": a, "b": b, "votes": len(met), "prompts": len(of_prompt)}
            | {k: int(count.get(k, 0)) for k in ("wins", "ties", "losses")}
            | {"rate": of_prompt.mean(), "low": low, "high": high}
            | {"decided": bool((low > 0.5 or high < 0.5) and untied >= 6)}
        )
    if not rows:
        raise UserError(f"no vote compares two different {by}s; type --by run")
    return pd.DataFrame(rows)


def left_share(votes: pd.DataFrame) -> tuple[float, float, float]:
    """How often the left side won, with its interval; 1/2 without a bias to a side."""
    of_prompt = votes.groupby(_cluster(votes))["points"].mean().to_numpy()
    return (float(of_prompt.mean()), *_interval(of_prompt))


def _games(votes: pd.DataFrame, by: str) -> pd.DataFrame:
    """Votes as (a, b, points of a, cluster) with a < b, without pairs of one name."""
    if by not in NAMES:
        raise UserError(f"by={by} is unknown; type one of {', '.join(NAMES)}")
    left, right = votes[f"left_{by}"], votes[f"right_{by}"]
    turned = left > right
    games = pd.DataFrame(
        {
            "a": left.where(~turned, right),
            "b": right.where(~turned, left),
            "points": votes["points"].where(~turned, 1 - votes["points"]),
            "cluster": _cluster(votes),
        }
    )
    return games[left != right]


def _cluster(votes: pd.DataFrame) -> pd.Series:
    """The prompt, with the entry that it replaces if it is augmented."""
    both = zip(votes["prompt"], votes["original"], strict=True)
    return pd.Series([json.dumps([p, None if o != o else o]) for p, o in both], votes.index)


def _interval(d: np.ndarray) -> tuple[float, float]:
    """Bootstrap interval of a rate over prompts, within [0, 1].

    Where all n prompts have the same rate c, resamples cannot differ. Then the share of prompts with
    another rate is at most x = 1 - ((1 - level) / 2)^(1/n) at this level (Clopper and Pearson), and
    the mean is in [(1 - x) c, (1 - x) c + x].
    """
    if len(d) < 2:
        return math.nan, math.nan
    if np.ptp(d) == 0:
        x, c = 1 - ((1 - LEVEL) / 2) ** (1 / len(d)), float(d[0])
        return (1 - x) * c, (1 - x) * c + x
    low, high = bootstrap_interval(d, LEVEL)
    return max(float(low), 0.0), min(float(high), 1.0)


def ranking(votes: pd.DataFrame, by: str = "label") -> pd.DataFrame:
    """Everything that was compared, best first: theta (log odds, mean 0), low, high, beats, votes.

    `beats`: the mean over the others of the modelled chance to be preferred. Raises UserError where
    the likelihood has no maximum: some never lost to, or never met, the others (Ford 1957).
    """
    games = _games(votes, by)
    names = sorted({*games["a"], *games["b"]})
    a, b = (np.searchsorted(names, games[side]) for side in ("a", "b"))
    theta, low, high = bradley_terry(a, b, games["points"].to_numpy(), games["cluster"], names)
    table = pd.DataFrame({by: names, "theta": theta, "low": low, "high": high})
    table["beats"] = (_chance(theta).sum(1) - 0.5) / (len(names) - 1)  # 1/2 against itself
    table["votes"] = np.bincount([*a, *b], minlength=len(names))
    return table.sort_values("theta", ascending=False, ignore_index=True)


def bradley_terry(
    a: np.ndarray,
    b: np.ndarray,
    points: np.ndarray,
    clusters: Iterable[Hashable],
    names: list[str],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Strengths theta (n,) of n = len(names), sum 0, with the ends of their intervals.

    a, b: (votes,) indices of the two sides; points of a: 1, 1/2 or 0; clusters: of each vote. Newton's
    method on the log likelihood, which is concave. Below two clusters the ends are NaN. Raises
    UserError as `ranking` does.
    """
    n = len(names)
    wins = np.zeros((n, n))
    np.add.at(wins, (a, b), points)
    np.add.at(wins, (b, a), 1 - points)
    _require_maximum(wins, names)
    met, theta = wins + wins.T, np.zeros(n)
    for _ in range(STEPS):
        p = _chance(theta)
        step = np.linalg.pinv(_information(met, p)) @ (wins - met * p).sum(1)
        theta += step / max(1.0, np.abs(step).max())  # at most one unit
        if np.abs(step).max() < TOLERANCE:
            break
    theta -= theta.mean()
    p = _chance(theta)
    residual = points - p[a, b]
    own = pd.factorize(np.array([*clusters]))[0]
    g = own.max() + 1
    if g < 2:
        return theta, np.full(n, np.nan), np.full(n, np.nan)
    score = np.zeros((g, n))
    np.add.at(score, (own, a), residual)
    np.add.at(score, (own, b), -residual)
    bread = np.linalg.pinv(_information(met, p))
    variance = bread @ (score.T @ score) @ bread * g / (g - 1)
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * np.sqrt(np.diag(variance).clip(0))
    return theta, theta - half, theta + half


def _chance(theta: np.ndarray) -> np.ndarray:
    """p[i, j]: i beats j."""
    return 1 / (1 + np.exp(theta[None] - theta[:, None]))


def _information(met: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Fisher information of theta: a graph's Laplacian with the weights met p (1 - p)."""
    weight = met * p * (1 - p)
    return np.diag(weight.sum(1)) - weight


def _require_maximum(wins: np.ndarray, names: list[str]) -> None:
    """Every pair must be connected by a chain of (half) wins."""
    reach = (wins > 0) | np.eye(len(names), dtype=bool)
    for k in range(len(names)):  # Warshall's closure
        reach |= np.outer(reach[:, k], reach[k])
    for i, j in np.argwhere(~reach):
        raise UserError(
            f"no ranking: no chain of wins leads from {names[i]} to {names[j]}, so the best fit is at "
            "infinity; vote on more pairs, or look at the win rates"
        )


def main(argv: list[str] | None = None) -> None:
    """Print win rates and, for more than two, the ranking; exits with 2 and one line if it cannot."""
    parser = argparse.ArgumentParser("python -m s2flow.preferences", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("votes", type=Path, nargs="+", help="files that the report page saved")
    parser.add_argument("--by", choices=NAMES, default="label", help="what is compared")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="the votes as a table")
    args = parser.parse_args(argv)
    try:
        votes = read_votes(*args.votes)
        rates = win_rates(votes, args.by)
        share, low, high = left_share(votes)
        ends = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
        print(
            f"{len(votes)} votes on {votes['prompt'].nunique()} prompts in "
            f"{votes['session'].nunique()} session(s); {(votes['choice'] == 'tie').mean():.0%} ties; "
            f"left side {share:.2f}{ends}, 1/2 without a bias to a side. Intervals are 95 %."
        )
        print(rates.to_string(index=False, float_format="%.3f"))
        if args.csv:
            try:
                votes.to_csv(args.csv, index=False)
            except OSError as error:
                raise UserError(f"--csv {args.csv} cannot be written: {error.strerror}") from None
        if len({*rates["a"], *rates["b"]}) > 2:
            try:
                print("\n" + ranking(votes, args.by).to_string(index=False, float_format="%.3f"))
            except UserError as error:  # the win rates are valid
                print(f"\n{error}")
    except UserError as error:
        print_error(error)
        sys.exit(2)
