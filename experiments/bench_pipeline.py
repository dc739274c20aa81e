"""Whole clips, stage by stage: native, cascade and s2flow at several s, beside the runtime model.

    python experiments/bench_pipeline.py                        # CPU: the embedded micro backbone
    python experiments/bench_pipeline.py --backbone wan_1_3b    # GPU: Wan 2.1 1.3B, random weights
    cost      2 minutes on two CPU cores; on a GPU the minutes given, 24 GiB or more; not yet run there
    expected  speed-up over native as the model has it; peak memory within 20 % of `s2flow.costs`

Methods take turns, clip by clip, and each makes its own LR flow: nothing is reused. ratio is native's
wall time over this method's, native being dense attention at HR from the first step to the last; by
stage likewise where both have the stage. The model: FLOPs of every stage by `s2flow.costs`, over the
rates that native's own HR stage and decoding reached in this run. What it does not count (text, plan,
diagnostics) is 0 there.

Wan 1.3B needs no checkpoint: time and memory do not depend on the weights' values, and text states are
drawn at random. Its size is the largest of SIZES that by the estimate fits the memory, and by one
measured forward the time. There are few steps, so that attention, not their number, fills the time.
`--tiny` is the same at toy width, on a CPU, to see that it runs.

Writes results/bench_pipeline_<device>.json with picture, `_wan_1_3b` or `_toy` in its name.
"""

import argparse
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benching import Result, checked, parser_of, run, sig, summed_up
from hydra import compose, initialize_config_dir
from random_models import build, model, random_condition

import s2flow.recipe.resolve as config
from s2flow.backbones.base import Origin
from s2flow.backbones.tiles import tile_vae
from s2flow.costs import GIB, RESERVE, SLACK, VAE_SHARE, Costs, forward_cost, measure
from s2flow.costs.blank import blank
from s2flow.embedded import backbone as tiny
from s2flow.errors import UserError
from s2flow.methods import generate, method
from s2flow.process.timing import Clock
from s2flow.recipe.identity import Recipe
from s2flow.store.lowflow import LowFlowCache

ROOT = Path(__file__).parent.parent
SIZES = [  # (LR, HR, frames, brick at LR, brick at HR), largest first; the first is the paper's
    ((768, 1280), (1536, 2560), 117, (2, 4, 4), (2, 8, 8)),
    ((768, 1280), (1536, 2560), 81, (1, 4, 8), (1, 8, 16)),
    ((480, 832), (960, 1664), 81, (3, 2, 4), (3, 4, 8)),
    ((480, 832), (960, 1664), 25, (1, 2, 4), (1, 4, 8)),
    ((256, 448), (512, 896), 17, (1, 2, 2), (1, 4, 4)),
]
TOY_SIZE = ((64, 64), (128, 128), 5, (1, 1, 1), (1, 2, 2))
PROMPT = "a large blue star spins on sand"  # of the embedded world; others have random text
STAGES = ("text", "lr", "plan", "handoff", "hr", "decode", "preview", "diagnostics")


def main() -> None:
    """Build, choose a size, run in turns, write after every clip."""
    parser = parser_of(__doc__, minutes=9)
    parser.add_argument("--backbone", choices=("micro", "wan_1_3b"))
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.75, 0.5, 0.25])
    parser.add_argument("--steps", type=int, help="of Wan 5, else the backbone's own")
    parser.add_argument("--t-i", type=int, help="of Wan 3, else the backbone's own")
    parser.add_argument("--tiny", action="store_true", help="Wan at toy width, on a CPU")
    args = checked(parser.parse_args())
    args.backbone = args.backbone or (
        "wan_1_3b" if args.device == "cuda" or args.tiny else "micro"
    )
    if args.backbone == "wan_1_3b" and args.device == "cpu" and not args.tiny:
        raise UserError("backbone=wan_1_3b needs a CUDA device; type --tiny to see that it runs")
    if args.backbone == "micro" and args.tiny:
        raise UserError("tiny is of backbone=wan_1_3b; leave --tiny out: micro is small already")
    if args.backbone == "wan_1_3b":
        args.steps, args.t_i = args.steps or 5, args.t_i or 3
        args.name = "_".join(filter(None, ("toy" if args.tiny else "wan_1_3b", args.name)))
    result = Result("pipeline", args, backbone=args.backbone, toy=args.tiny)
    with subject(args) as (backbone, origin, sizes):
        bench(backbone, origin, sizes, args, result)
    result.finish("pipeline")


@contextmanager
def subject(args: argparse.Namespace):
    """(backbone, its origin, the sizes to choose from; None: the one of its file)."""
    if args.backbone == "micro":
        yield tiny.load("micro", args.device), Origin("micro"), [None]
        return
    with model(args.backbone, args.tiny) as known:
        backbone = build(known, args.device, ("transformer", "vae"))
        backbone.encode_prompt = lambda prompts, negative, guidance: random_condition(
            backbone, len(prompts), guidance
        )
        yield backbone, known.origin, [TOY_SIZE] if args.tiny else SIZES


def variants(args: argparse.Namespace) -> dict[str, list[str]]:
    """What is compared: a name, and the words of `run.py` that mean it."""
    found = {"native": ["method=native"], "cascade": ["method=cascade"]}
    for s in args.sparsity:
        found[f"s2flow s={s:g}"] = ["method=s2flow", f"sparsity={s:g}"]
    found["s2flow s=0.5 per axis"] = ["method=s2flow", "sparsity=0.5", "density=per_axis"]
    return found


def recipes_of(args: argparse.Namespace, size: tuple | None) -> dict[str, Recipe]:
    """The recipe of every variant at one size. Raises UserError for what cannot be made."""
    words = [f"backbone={args.backbone}"]
    words += [f"{k}={v}" for k, v in (("steps", args.steps), ("t_i", args.t_i)) if v is not None]
    if size is not None:
        names = ("low", "high", "frames", "brick_low", "brick_high")
        for name, v in zip(names, size, strict=True):
            words.append(
                f"{name}={v}" if name == "frames" else f"{name}=[{','.join(map(str, v))}]"
            )
    words += ["vae_tile=[64,48]"] if args.tiny else []
    found = {}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for name, more in variants(args).items():
            own = words + more
            if name == "native":  # no hand-off, so no t_i
                own = [w for w in own if not w.startswith(("t_i=", "low=", "brick_"))]
            cfg = compose("config", own)
            r = config.resolve(cfg, "bench", method(cfg.method.name).KNOBS)
            found[name] = replace(r, dtype="float32") if args.tiny else r
    return found


def bench(backbone: Any, origin: Origin, sizes: list, args: Any, result: Result) -> None:
    """Every variant in turn, as often as the time allows, at least once."""
    recipes, costs = choose(backbone, origin, sizes, args, result)
    r = recipes["cascade"]
    result.put("shapes", {"low": r.low, "high": r.high, "frames": r.frames, "steps": r.steps})
    result.found["shapes"] |= {"t_i": r.t_i, "brick_low": r.brick_low, "brick_high": r.brick_high}
    clocks: dict[str, list[Clock]] = {name: [] for name in recipes}
    walls: dict[str, list[float]] = {name: [] for name in recipes}
    densities: dict[str, float] = {}
    for recipe in recipes.values():  # compiles, tunes, allocates
        make(backbone, replace(recipe, steps=2, t_i=1), args.device)
    for _ in range(args.repeats):
        start = time.monotonic()
        for name, recipe in recipes.items():
            clock, wall, density = make(backbone, recipe, args.device)
            clocks[name].append(clock)
            walls[name].append(wall)
            densities[name] = density
            rows = [
                row_of(name, recipes, costs, clocks, walls, densities, args)
                for name in recipes
                if clocks[name]
            ]
            result.put("rows", rows)
        if not result.time_for("one more round", time.monotonic() - start):
            break
    for row in result.found["rows"]:
        print(
            f"{row['variant']}: {row['seconds']:.4g} s, {row['ratio']:.2f} x native; by the model "
            f"{row['model']['seconds']:.4g} s, {row['model']['ratio']:.2f} x"
        )


def make(backbone: Any, recipe: Recipe, device: str) -> tuple[Clock, float, float]:
    """One clip from nothing: its clock, its wall seconds, its mean realised density."""
    clock = Clock(device)
    with ExitStack() as stack, torch.no_grad():
        tile_vae(backbone.vae, recipe.vae_tile)
        if device == "cuda":
            stack.callback(torch.cuda.synchronize)
        start = time.perf_counter()
        made = generate(backbone, recipe, [PROMPT], [0], clock=clock, cache=LowFlowCache())
        if device == "cuda":
            torch.cuda.synchronize()
        wall = time.perf_counter() - start
    if not torch.isfinite(made.latent).all():
        raise UserError("the latent holds NaN or infinity: nothing was measured")
    found = made.reports[0]["density"].values()
    return clock, wall, sum(found) / len(found)


def row_of(name: str, recipes, costs, clocks, walls, densities, args) -> dict[str, Any]:
    """One variant beside native and beside the runtime model."""
    stages = {s.name: s for s in costs[name].stages}
    seconds = {
        s: median(c.seconds.get(s, 0.0) for c in clocks[name])
        for s in STAGES
        if s in clocks[name][-1].seconds
    }
    native = {s: median(c.seconds[s] for c in clocks["native"]) for s in ("hr", "decode")}
    own = {s.name: s for s in costs["native"].stages}
    rate = {
        "transformer": own["hr"].flops / native["hr"],
        "vae": own["decode"].flops / native["decode"],
    }
    guess, whole = (
        {s.name: s.flops / rate[s.part] for s in c.stages if s.part in rate}
        for c in (costs[name], costs["native"])
    )
    found = summed_up(walls[name])
    resident = costs[name].weights.vae + costs[name].weights.transformer[0]
    parts = {}
    for stage, took in seconds.items():
        part = {"seconds": sig(took)}
        if stage in native:
            part["ratio"] = sig(native[stage] / max(took, 1e-9))
        if stage in stages and stage != "text":
            peak = max(c.peak_mib[stage] for c in clocks[name]) / 1024
            estimate = (resident + stages[stage].bytes) / GIB
            part |= {
                "tokens": stages[stage].tokens,
                "tflop": sig(stages[stage].flops / 1e12),
                "model_seconds": sig(guess.get(stage, 0.0)),
                "peak_gib": sig(peak, 4),
                "estimated_peak_gib": sig(estimate, 4),
                # a CPU's peak is the whole process: nothing to compare with
                "estimate_over_measured": sig(estimate / peak) if args.device == "cuda" else None,
            }
        parts[stage] = part
    return {
        "variant": name,
        "method": recipes[name].method,
        "density": sig(densities[name]),
        **found,
        "ratio": sig(median(walls["native"]) / found["seconds"]),
        "stages": parts,
        "model": {
            "seconds": sig(sum(guess.values())),
            "ratio": sig(sum(whole.values()) / sum(guess.values())),
            "tflops_reached": {k: sig(v / 1e12) for k, v in rate.items()},
        },
    }


def choose(backbone: Any, origin: Origin, sizes: list, args: Any, result: Result) -> tuple:
    """(recipes, costs) by variant, of the largest size that fits the memory and the minutes."""
    family = "tiny" if args.backbone == "micro" else "wan"
    counted = args.device == "cuda"
    memory = torch.cuda.mem_get_info()[1] / GIB if counted else float("inf")
    step = seconds_per_flop(backbone, origin, family, sizes[-1]) if counted else 0.0
    minutes = 0.0
    for size in sizes:
        recipes = recipes_of(args, size)
        costs = {name: measure(blank(family, origin), r) for name, r in recipes.items()}
        needed = max(c.peak(s) for c in costs.values() for s in c.stages) / GIB * SLACK + RESERVE
        minutes = sum(work_of(c) for c in costs.values()) * step * 1.5 / 60  # and the warm-up
        if counted:
            print(f"{size[1]} x {size[2]}: {needed:.1f} GiB, {minutes:.1f} minutes")
        if needed <= memory and 60 * minutes <= result.left():
            return recipes, costs
    raise UserError(f"nothing fits {args.minutes:g} minutes; type --minutes {minutes + 1:.0f}")


def work_of(costs: Costs) -> float:
    """FLOPs of a clip, those of the autoencoder at its slower rate."""
    return sum(s.flops / (VAE_SHARE if s.part == "vae" else 1) for s in costs.stages)


def seconds_per_flop(backbone: Any, origin: Origin, family: str, size: tuple) -> float:
    """Of one forward at a small size: slower than at a large one, so that the budget holds."""
    shape = backbone.latent_shape(*size[1], size[2])
    z, text = torch.randn(1, *shape, device=backbone.device), random_condition(backbone, 1, 5.0)
    backbone.velocity(z, 0.5, text)
    clock = Clock(backbone.device)
    with clock("forward"):
        backbone.velocity(z, 0.5, text)
    return clock.seconds["forward"] / forward_cost(blank(family, origin), shape, 1, 5.0).flops()


if __name__ == "__main__":
    sys.exit(run(main))
