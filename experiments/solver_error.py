"""Does borrowing derivatives from the LR flow pay? Error curves of all solvers.

    python experiments/solver_error.py [--prompts 4] [--steps 10,20,40] [--backbone micro] [t_i=...]
    python experiments/solver_error.py --flow gaussian [--power 4] [--prompts 32]

From one hand-off state, every solver integrates the HR flow with full attention over several step
counts N; the reference (reference.py) cuts the finest of these steps in `--cut`. `--flow gaussian`
puts closed-form flows (gaussian_flow.py) in the model's place. Prints, per guidance and hand-off
noise, |z_0 - z_ref| / |z_ref|, mean over prompts; who wins; of each source of v' its cosine with the
HR flow's own central difference and its relative error; lambda of lri_cv. Writes
experiments/results/*_solver_error*.
"""

import argparse
import sys
from collections.abc import Callable
from statistics import fmean
from typing import Any

from configs import composed, recipe_of, weights_of
from gaussian_flow import GaussianCascade
from reference import reference_flow, relative_errors
from script import RESULTS, markdown, result, run, write_result
from torch import Tensor

from s2flow.cascade import Cascade
from s2flow.errors import UserError
from s2flow.flow import Trajectory
from s2flow.process import loading
from s2flow.solver import LRI, derivative_cosines, difference_weights
from s2flow.store.tasks import clip_tasks

SOLVERS = {
    "euler": ["solver=euler"],
    "lri order 2": ["solver=lri", "order=2"],
    "lri order 3": ["solver=lri", "order=3"],
    "lri order 2, equal SNR": ["solver=lri", "order=2", "lr_time=snr"],
    "lri_cv": ["solver=lri_cv"],
    "ab2": ["solver=ab2"],
    "ab3": ["solver=ab3"],
    "unipc": ["solver=unipc"],
    "heun": ["solver=heun"],
}
SOURCES = {"lri": "LR", "snr": "LR at SNR", "history": "HR past"}  # of v'
Make = Callable[[list[str]], Cascade]
Row = dict[str, Any]


def main() -> None:
    """Measure all settings, print, write and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--steps", default="10,20,40", help="N, separated by commas")
    parser.add_argument("--guidance", default="4,1", help="for --flow model, separated by commas")
    parser.add_argument("--cut", type=int, default=2, help="reference steps per finest step")
    parser.add_argument("--flow", choices=("model", "gaussian"), default="model")
    parser.add_argument(
        "--power", type=float, default=4.0, help="spectral fall of --flow gaussian"
    )
    parser.add_argument("--backbone", default="micro")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("words", nargs="*", help="knobs of run.py, such as shift=7")
    args = parser.parse_intermixed_args()
    try:
        args.steps = sorted({int(n) for n in args.steps.split(",")})
        args.guidance = tuple(float(g) for g in args.guidance.split(","))
    except ValueError as error:
        parser.error(f"{error}; type --steps 10,20,40 --guidance 4,1")
    if args.prompts < 1 or args.cut < 2 or args.steps[0] < 2:
        parser.error("type --prompts 1, --cut 2 and --steps 2 or more")
    is_gaussian = args.flow == "gaussian"
    make = engines(args)
    guidances = (1.0,) if is_gaussian else args.guidance
    settings = [(g, noise) for g in guidances for noise in ("fresh", "aligned")]
    rows = [r for g, noise in settings for r in measure(args, make, g, noise)]
    name = f"gaussian_{args.power:g}" if is_gaussian else args.backbone
    path = RESULTS / "_".join([name, "solver_error", *args.words])
    weights = make([f"steps={args.steps[-1]}"]).recipe.weights
    data = result("solver_error", sys.argv[1:], args.device, weights=weights, rows=rows)
    write_result(path.with_name(path.name + ".json"), data)
    print("\n".join(table(rows)))
    try:
        from error_plot import drawn
        from figures import write
    except ModuleNotFoundError as missing:
        print(f"no picture, {missing.name} is not installed; type pip install -e '.[analysis]'")
    else:
        write(drawn(rows), path)


def engines(args: argparse.Namespace) -> Make:
    """make(words): an engine for all prompts at once, around a backbone or the closed-form pair.

    The pair's schedule and hand-off level are the backbone's.
    """
    base = ["prompts=world", f"backbone={args.backbone}", "windows=full"]
    base += [f"prompts.count={args.prompts}", *args.words]
    is_gaussian = args.flow == "gaussian"

    def make(words: list[str]) -> Cascade:
        cfg = composed([*base, *["handoff=latent"] * is_gaussian, *words])
        if is_gaussian:
            return GaussianCascade(args.power, recipe_of(cfg), args.prompts)
        recipe, tasks = recipe_of(cfg, weights_of(cfg)), clip_tasks(cfg)
        backbone = loading.load_backbone(cfg.backbone, args.device)
        return Cascade(backbone, recipe, [t.prompt for t in tasks], [t.seed for t in tasks])

    return make


# -- measuring --------------------------------------------------------------------------------


def measure(args: argparse.Namespace, make: Make, guidance: float, noise: str) -> list[Row]:
    """Errors of all solvers at all step counts, from one hand-off state."""
    words = [f"guidance={guidance}", f"noise={noise}"]
    t_i = hand_off_steps(make([f"steps={args.steps[-1]}"]).recipe.t_i, args.steps)
    finest = make([*words, f"steps={args.steps[-1]}", f"t_i={t_i[-1]}"])
    z = finest.hand_off(finest.low_flow())
    reference = reference_flow(finest, z, t_i[-1], args.cut)
    trust = _relative(reference_flow(finest, z, t_i[-1], args.cut // 2), reference)
    rows = []
    for N, t in zip(args.steps, t_i, strict=True):
        here = [*words, f"steps={N}", f"t_i={t}"]
        low = make(here).low_flow()
        row: Row = {"guidance": guidance, "noise": noise, "steps": N, "t_i": t}
        row |= {"sigma": float(finest.sigma_high[t_i[-1]]), "reference_error": trust, "error": {}}
        for name, extra in SOLVERS.items():
            engine = make(here + extra)
            solver = engine.solver(low)
            flow = engine.high_flow(z, t, solver)
            row["error"][name] = _relative(flow.z[0], reference)
            if name == "lri_cv":
                row["lambda"] = _mean(solver.report["lambda"])
            if name == "euler":
                snr = make([*here, "lr_time=snr"]).lri(low, 2)
                row |= sources(flow, engine.lri(low, 2), snr, t)
        rows.append(row)
        print(f"guidance {guidance:g}, {noise}, N = {N}:", row["error"], file=sys.stderr)
    return rows


def hand_off_steps(t_i: int, steps: list[int]) -> list[int]:
    """t_i of every grid at one noise level. Raises UserError if they do not share it."""
    each = [t_i * N / steps[-1] for N in steps]
    if any(t != int(t) or t < 1 for t in each):
        words = ",".join(str(N) for N in steps)
        raise UserError(
            f"--steps {words}: the hand-off, t_i={t_i} of {steps[-1]}, is a node of the finest "
            "grid and not of all; type --steps 10,20,40"
        )
    return [int(t) for t in each]


def sources(high: Trajectory, lri: LRI, snr: LRI, t_i: int) -> Row:
    """Cosine and relative error of each source of v' with the HR central difference, by step."""
    both = {"lri": derivative_cosines(high, lri, t_i), "snr": derivative_cosines(high, snr, t_i)}
    cosines = {**both["lri"], "snr": both["snr"]["lri"]}
    errors: dict[str, dict[int, list[float]]] = {name: {} for name in cosines}
    sigma = high.sigma.tolist()
    for n in range(t_i - 1, 1, -1):
        nodes = (n + 1, n, n - 1)
        weights = difference_weights([sigma[m] for m in nodes], sigma[n], 1)
        truth = sum(w * high.v[m] for w, m in zip(weights, nodes, strict=True))
        past = (high.v[n] - high.v[n + 1]) / (sigma[n] - sigma[n + 1])
        borrowed = (s.derivatives(n, sigma, None, None, None)[0] for s in (lri, snr))
        for name, d in zip(("lri", "snr", "history"), (*borrowed, past), strict=True):
            errors[name][n] = relative_errors(d.cpu(), truth).tolist()
    row: Row = {}
    for name in cosines:
        row[f"cosine_{name}"] = _mean(cosines[name])
        row[f"derivative_error_{name}"] = _mean(errors[name])
        by_step = {str(n): round(fmean(c), 4) for n, c in cosines[name].items()}
        row[f"cosine_{name}_by_step"] = by_step
    return row


def _relative(z: Tensor, reference: Tensor) -> float:
    return float(f"{relative_errors(z.cpu(), reference.cpu()).mean():.4g}")


def _mean(by_step: dict[int, list[float]]) -> float | None:
    values = [x for clips in by_step.values() for x in clips]
    return fmean(values) if values else None


# -- showing ----------------------------------------------------------------------------------


def table(rows: list[Row]) -> list[str]:
    """Lines of markdown, with who wins each row among the solvers of one model call a step."""
    columns = [f"cosine_{s}" for s in SOURCES] + [f"derivative_error_{s}" for s in SOURCES]
    head = ["guidance, noise, N", *SOLVERS, "reference", *(f"cos {s}" for s in SOURCES.values())]
    head += [*(f"v' err {s}" for s in SOURCES.values()), "lambda", "wins"]
    lines = []
    for r in rows:
        cells = [*r["error"].values(), r["reference_error"], *map(r.get, columns), r["lambda"]]
        shown = ["" if c is None else f"{c:.4f}" for c in cells]
        lines.append([f"{r['guidance']:g}, {r['noise']}, {r['steps']}", *shown, winner(r)])
    return markdown(head, lines)


def winner(row: Row) -> str:
    """Smallest error at one model call a step, that is without Heun."""
    return min((e, name) for name, e in row["error"].items() if name != "heun")[1]


if __name__ == "__main__":
    run(main)
