"""Claims that need no clips: the solver's order on closed-form flows, and the paper's speed by FLOPs.
 **Order** (gaussian_flow.py), error |z_0 - z_ref| / |z_ref|. own twin: derivatives from an Euler path
of the same flow, Eq. 12 at its best; the global order is log2 of the error's fall when N doubles.
half size: derivatives from the flow of the block means, fresh noise at the hand-off, Eq. 12 as it is;
compared are log errors of orders 1 and 2.

**Speed.** The paper's clock (`s2flow.costs.paper`): forwards of HunyuanVideo counted from its config,
at the rate of its LR steps. Windows no better or worse than dense attention by more than UTILISATION
give a range, an assumption and no interval of data, in which a claim is confirmed, outside it
refuted. Text, autoencoder and data are not in it, so claims of whole clips can be refuted by it,
never confirmed.
"""

import math
from typing import Any

from claim_rules import CONFIRMED, REFUTED, UNDECIDED, WORDS, Decision, decide
from gaussian_flow import GaussianCascade
from reference import reference_flow, relative_errors
from torch import Tensor

from s2flow.cascade import Cascade
from s2flow.costs.paper import paper_clock
from s2flow.solver import LRI, Euler
from s2flow.windows import fraction_of_volume

PROMPTS, SEEDS = 64, 3
UTILISATION = 1.25  # windows run at 0.8 to 1.25 of the utilisation of dense attention


def _row(*row: Any) -> dict[str, Any]:
    """source, claim, measure, rule, Decision."""
    named = dict(zip(("source", "claim", "measure", "rule"), row, strict=False))
    return {**named, "runs": [], **row[-1].rounded()}


# -- order ------------------------------------------------------------------------------------


def order_claims(make: Any) -> list[dict[str, Any]]:
    """make(words) -> recipe of the embedded schedule with handoff=latent."""
    coarse, fine = (twin_errors(make, N) for N in (40, 80))
    slopes = {k: math.log2(coarse[k] / fine[k]) for k in coarse}
    euler, second = (half_size_errors(make, order) for order in (1, 2))
    gain = {k: math.log(euler[k] / second[k]) for k in euler}
    twin = "Eq. 12 with K = 2 is of second order, if the LR flow is the HR flow"
    half = "With an LR flow of half the size, order 2 is nearer the exact flow than Euler"
    rows = []
    for sentence, measure, rule, margin, values in (
        (twin, "order of the global error, N = 40 to 80", "over", 1.75, slopes),
        (half, "log of Euler's error / order 2's, N = 20", "above", 0.05, gain),
    ):
        decision = decide(rule, margin, values, None, PROMPTS, SEEDS)
        rows.append(_row("Eq. 12", sentence, measure, WORDS[rule].format(m=margin), decision))
    return rows


def _engine(make: Any, words: list[str]) -> GaussianCascade:
    run = GaussianCascade(4.0, make(words), PROMPTS * SEEDS)
    keys = [(f"image {i}", s) for i in range(PROMPTS) for s in range(SEEDS)]
    run.prompts, run.seeds = [p for p, _ in keys], [s for _, s in keys]
    return run


def _errors(run: Cascade, z: Tensor, truth: Tensor) -> dict[tuple[str, int], float]:
    e = relative_errors(z, truth)
    return dict(zip(zip(run.prompts, run.seeds, strict=True), e.tolist(), strict=True))


def twin_errors(make: Any, N: int) -> dict[tuple[str, int], float]:
    """Order 2 over all N steps of the LR-size flow, with derivatives from its own Euler path."""
    run, exact = (_engine(make, [f"steps={n}", f"t_i={n - 1}"]) for n in (N, 160))
    z = run.noise(run.low_shape, "low")
    path = run.high_flow(z, N, Euler())
    end = run.high_flow(z, N, LRI(path, lambda d: d, 2)).z[0]
    return _errors(run, end, reference_flow(exact, z, 160, 2))


def half_size_errors(make: Any, order: int) -> dict[tuple[str, int], float]:
    """An order from the hand-off on, with N = 20, as the method runs."""
    run, exact = (_engine(make, [f"steps={n}", f"t_i={2 * n // 5}"]) for n in (20, 80))
    low = run.low_flow()
    z = run.hand_off(low)
    end = run.high_flow(z, run.recipe.t_i, run.lri(low, order)).z[0]
    return _errors(run, end, reference_flow(exact, z, exact.recipe.t_i, 2))


# -- speed ------------------------------------------------------------------------------------


def speed_claims() -> list[dict[str, Any]]:
    """Figure 6's 7.6x and Table 1's 4x under both readings of s = 0.5; the rivals' 1.4x."""
    clock, claimed = paper_clock(), []  # source, sentence, claimed ratio, ratio of the clock
    native = clock.native
    readings = {"volume": "s of the volume, the text", "per_axis": "s per axis, s³ of the volume"}
    for density, reading in readings.items():
        f = fraction_of_volume(clock.setting["sparsity"], density)
        words = f"HR steps are 7.6 times as fast as with full attention (f = {f:g}: {reading})"
        claimed.append(("Figure 6", words, 7.6, clock.speedup(f)))
        words = f"A whole clip is 4 times as fast as the backbone at HR (f = {f:g}: {reading})"
        claimed.append(("Table 1", words, 4.0, native / clock.minutes(clock.predicted(f))))
    words = "Rivals with full attention are 1.4 times as fast as the backbone at HR"
    claimed.append(("Table 1", words, 1.4, native / clock.minutes(clock.predicted())))
    rows = []
    for source, sentence, ratio, ours in claimed:
        low, high = ours / UTILISATION, ours * UTILISATION
        verdict, why = CONFIRMED if low <= ratio <= high else REFUTED, ""
        rule = "confirmed if the claimed ratio is in the range, refuted if not"
        if source == "Table 1":  # of whole clips: at most this, since the rest is not counted
            verdict = REFUTED if ratio > high else UNDECIDED
            why = "" if verdict == REFUTED else "autoencoder and data are not in the model"
            rule = "refuted if the claimed ratio is above the range: the transformer alone takes longer"
        measure = "runtime model (FLOPs) at the paper's size; the range is assumed, not sampled"
        decision = Decision(verdict, why, ours, low, high)
        rows.append(_row(source, sentence, measure, rule, decision))
    return rows
