"""Does borrowing derivatives from the LR flow pay? Solver errors against a finer reference.

    python experiments/solver_error.py [--prompts 8] [--backbone micro]

From one hand-off state, every solver integrates the HR flow (full attention) on the same grid; the
reference is Heun with every step cut in four. Prints, per guidance and hand-off noise, the relative
error |z_0 - z_ref| / |z_ref| (mean over prompts), the cosine of U(dv_lr/dsigma) and of the HR
backward difference with the HR flow's own central difference (mean over steps), and lambda of lri_cv.
Writes experiments/results/<backbone>_solver_error.json. Expected from an earlier, barely trained
spike: second order from LR no better than Euler, cosine near 0, ab2 about twice as good or better.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

import torch
from hydra import compose, initialize_config_dir

import s2flow.config
from s2flow import methods
from s2flow.backbones import tiny
from s2flow.cascade import Cascade
from s2flow.provenance import provenance
from s2flow.runner import clip_tasks
from s2flow.solver import derivative_cosines

ROOT = Path(__file__).parent.parent
SOLVERS = {
    "euler": ["solver=euler"],
    "lri order 2": ["solver=lri", "order=2"],
    "lri order 3": ["solver=lri", "order=3"],
    "lri order 2, equal SNR": ["solver=lri", "order=2", "lr_time=snr"],
    "ab2": ["solver=ab2"],
    "lri_cv": ["solver=lri_cv"],
}
SETTINGS = [(g, noise) for g in (4.0, 1.0) for noise in ("fresh", "aligned")]
CUT = 4


def main() -> None:
    """Measure all settings, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--backbone", default="micro")
    args = parser.parse_args()
    backbone = tiny.load(args.backbone, "cpu")
    rows = [measure(args, backbone, g, noise) for g, noise in SETTINGS]
    result = {
        "command": f"python experiments/solver_error.py --prompts {args.prompts}",
        "weights": tiny.weights_hash(args.backbone),
        **{k: v for k, v in provenance("cpu").items() if k not in ("command", "host")},
        "rows": rows,
    }
    path = Path(__file__).parent / "results" / f"{args.backbone}_solver_error.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print("| guidance, noise |", " | ".join([*SOLVERS, "cos LR", "cos HR past", "lambda"]), "|")
    print("|---|" + "---|" * (len(SOLVERS) + 3))
    for r in rows:
        cells = [*r["error"].values(), r["cosine_lri"], r["cosine_history"], r["lambda"]]
        print(f"| {r['guidance']:g}, {r['noise']} |", " | ".join(f"{c:.3f}" for c in cells), "|")


def measure(
    args: argparse.Namespace, backbone: tiny.TinyBackbone, guidance: float, noise: str
) -> dict:
    """Errors of all solvers under one setting, for all prompts at once."""
    words = [f"backbone={args.backbone}", f"guidance={guidance}", f"noise={noise}", "windows=full"]
    words += ["prompts=world", f"prompts.count={args.prompts}"]
    base = cascade(backbone, words)
    low = base.low_flow()
    t_i = base.recipe.t_i
    z = base.hand_off(low)
    fine = cascade(backbone, [*words, "solver=heun"])
    fine.sigma = torch.cat(
        [
            torch.linspace(a, b, CUT + 1, dtype=torch.float64)[:-1]
            for a, b in _pairs(base.sigma, t_i)
        ]
        + [base.sigma[t_i : t_i + 1]]
    )
    reference = fine.high_flow(z, CUT * t_i, fine.solver(low)).z[0]
    row: dict = {"guidance": guidance, "noise": noise, "error": {}}
    for name, extra in SOLVERS.items():
        one = cascade(backbone, words + extra)
        solver = one.solver(low)
        flow = one.high_flow(z, t_i, solver)
        row["error"][name] = _relative(flow.z[0], reference)
        if name == "euler":
            cosines = derivative_cosines(flow, one.lri(low, 2), t_i)
            row |= {f"cosine_{k}": _mean(v) for k, v in cosines.items()}
        if name == "lri_cv":
            row["lambda"] = _mean(solver.report["lambda"])
    return row


def cascade(backbone: tiny.TinyBackbone, words: list[str]) -> Cascade:
    """The engine of one config, for the config's whole prompt list."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=words)
    recipe = s2flow.config.resolve(cfg, "", methods.method("s2flow").KNOBS)
    tasks = clip_tasks(cfg)
    return Cascade(backbone, recipe, [t.prompt for t in tasks], [t.seed for t in tasks])


def _mean(by_step: dict[int, list[float]]) -> float:
    return fmean(x for clips in by_step.values() for x in clips)


def _pairs(sigma: torch.Tensor, t_i: int) -> list[tuple[float, float]]:
    s = sigma.tolist()
    return [(s[n], s[n + 1]) for n in range(t_i)]


def _relative(z: torch.Tensor, reference: torch.Tensor) -> float:
    error = (z - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
    return round(float(error.mean()), 5)


if __name__ == "__main__":
    main()
