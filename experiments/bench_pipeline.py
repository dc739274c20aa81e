"""Whole clips, stage by stage: native, cascade and s2flow at several s, beside the runtime model.

    python experiments/bench_pipeline.py                        # CPU: the embedded micro backbone
    python experiments/bench_pipeline.py --backbone wan_1_3b    # GPU: Wan 2.1 1.3B, random weights
    cost      2 minutes on two CPU cores; on a GPU the minutes given, 24 GiB or more; not yet run there
    expected  speed-up over native as the model has it; peak memory within 20 % of `s2flow.costs`

Methods take turns, clip by clip, and each makes its own LR flow. ratio: native's wall time (dense
attention at HR from the first step to the last) over this method's. The model: FLOPs of every stage
by `s2flow.costs` over the rates that native's HR stage and decoding reached in this run; 0 for text,
plan, diagnostics. Wan needs no checkpoint, and takes the largest of SIZES that fits memory and time;
`--tiny` is the same at toy width, on a CPU. Writes results/bench_pipeline_<device>.json, `_wan_1_3b`
or `_toy` in its name.
"""

import argparse
import time
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Any

import torch
from benching import Result, checked, parser_of, sig, summed_up
from configs import composed, recipe_of
from random_models import build, model, random_condition
from script import run

from s2flow.backbones.base import Origin
from s2flow.backbones.tiles import tile_vae
from s2flow.costs.blank import blank
from s2flow.costs.clip import measure
from s2flow.costs.clock import VAE_SHARE
from s2flow.costs.forward import forward_cost
from s2flow.costs.stages import CONTEXT_GIB, GIB, SLACK, Costs
from s2flow.embedded import backbone as tiny
from s2flow.errors import UserError
from s2flow.methods import generate
from s2flow.process.timing import Clock
from s2flow.recipe.identity import Recipe
from s2flow.store.lowflow import LowFlowCache

SIZES = [  # (LR, HR, frames, brick at LR, brick at HR), largest first; the first is the paper's
    ((768, 1280), (1536, 2560), 117, (2, 4, 4), (2, 8, 8)),
    ((768, 1280), (1536, 2560), 81, (1, 4, 8), (1, 8, 16)),
    ((480, 832), (960, 1664), 81, (3, 2, 4), (3, 4, 8)),
    ((480, 832), (960, 1664), 25, (1, 2, 4), (1, 4, 8)),
    ((256, 448), (512, 896), 17, (1, 2, 2), (1, 4, 4)),
]
TOY_SIZE = ((64, 64), (128, 128), 5, (1, 1, 1), (1, 2, 2))
PROMPT = "a large red ball moves right on sand"  # of the embedded world; others have random text
SHAPE = ("low", "high", "frames", "brick_low", "brick_high")
STAGES = ("text", "lr", "plan", "handoff", "hr", "decode", "preview", "diagnostics")


@dataclass
class Variant:
    """A method as it is compared: its recipe, its estimate, and what was measured, clip by clip."""

    name: str
    recipe: Recipe
    costs: Costs
    clocks: list[Clock] = field(default_factory=list)
    walls: list[float] = field(default_factory=list)  # seconds
    density: float = 1.0

    def seconds(self) -> dict[str, float]:
        """Median seconds of each stage that it has."""
        known = [s for s in STAGES if s in self.clocks[-1].seconds]
        return {s: median(c.seconds.get(s, 0.0) for c in self.clocks) for s in known}


def main() -> None:
    """Build, choose a size, run in turns, write after every clip."""
    parser = parser_of(__doc__)
    parser.add_argument("--backbone", choices=("micro", "wan_1_3b"))
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.75, 0.5, 0.25])
    parser.add_argument("--steps", type=int, help="of Wan 5, else the backbone's own")
    parser.add_argument("--t-i", type=int, help="of Wan 3, else the backbone's own")
    parser.add_argument("--tiny", action="store_true", help="Wan at toy width, on a CPU")
    args = checked(parser.parse_args())
    is_wan = args.device == "cuda" or args.tiny
    args.backbone = args.backbone or ("wan_1_3b" if is_wan else "micro")
    if args.backbone == "wan_1_3b" and args.device == "cpu" and not args.tiny:
        raise UserError("backbone=wan_1_3b needs a CUDA device; type --tiny to see that it runs")
    if args.backbone == "micro" and args.tiny:
        raise UserError("tiny is of backbone=wan_1_3b; leave --tiny out: micro is small already")
    kind = ""
    if args.backbone == "wan_1_3b":
        args.steps, args.t_i = args.steps or 5, args.t_i or 3
        kind = "toy" if args.tiny else "wan_1_3b"
    result = Result("pipeline", args, kind, backbone=args.backbone, toy=args.tiny)
    if args.backbone == "micro":
        backbone = tiny.load("micro", args.device)
        bench(backbone, Origin("micro"), [None], args, result)
    else:
        with model(args.backbone, args.tiny) as known:
            backbone = build(known, args.device, ("transformer", "vae"))
            backbone.encode_prompt = lambda prompts, negative, guidance: random_condition(
                backbone, len(prompts), guidance
            )
            bench(backbone, known.origin, [TOY_SIZE] if args.tiny else SIZES, args, result)
    result.finish()


def recipes_of(args: argparse.Namespace, size: tuple | None) -> dict[str, Recipe]:
    """The recipe of every variant at one size, or at its file's. Raises UserError as run.py does."""
    words = [f"{k}={v}" for k, v in (("steps", args.steps), ("t_i", args.t_i)) if v is not None]
    for k, v in zip(SHAPE, size or (), strict=size is not None):
        words.append(f"{k}={v if isinstance(v, int) else list(v)}")
    words += ["vae_tile=[64,48]"] if args.tiny else []
    variants = {"native": ["method=native"], "cascade": ["method=cascade"]}
    variants |= {f"s2flow s={s:g}": [f"sparsity={s:g}"] for s in args.sparsity}
    variants["s2flow s=0.5 per axis"] = ["sparsity=0.5", "density=per_axis"]
    recipes = {}
    for name, more in variants.items():
        own = [f"backbone={args.backbone}", *words, *more]
        if name == "native":  # no hand-off, so no t_i
            own = [w for w in own if not w.startswith(("t_i=", "low=", "brick_"))]
        recipe = recipe_of(composed(own), "bench")
        recipes[name] = replace(recipe, dtype="float32") if args.tiny else recipe
    return recipes


def bench(backbone: Any, origin: Origin, sizes: list, args: Any, result: Result) -> None:
    """Every variant in turn, as often as the time allows, at least once.

    sizes: to choose from; None is the one of the backbone's file.
    """
    variants = choose(backbone, origin, sizes, args, result)
    r = variants["cascade"].recipe
    result.put("shapes", {name: getattr(r, name) for name in (*SHAPE, "steps", "t_i")})
    for v in variants.values():  # compiles, tunes, allocates
        make(backbone, replace(v.recipe, steps=2, t_i=1), args.device)
    for _ in range(args.repeats):
        start = time.monotonic()
        for v in variants.values():
            clock, wall, v.density = make(backbone, v.recipe, args.device)
            v.clocks.append(clock)
            v.walls.append(wall)
            done = [v for v in variants.values() if v.clocks]
            result.put("rows", [row_of(v, variants["native"], args.device) for v in done])
        if not result.time_for("one more round", time.monotonic() - start):
            break
    for row in result.data["rows"]:
        print(
            f"{row['variant']}: {row['seconds']:.4g} s, {row['ratio']:.2f} x native; by the model "
            f"{row['model']['seconds']:.4g} s, {row['model']['ratio']:.2f} x"
        )


def make(backbone: Any, recipe: Recipe, device: str) -> tuple[Clock, float, float]:
    """One clip from nothing: its clock, its wall seconds, its mean realised density."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    clock = Clock(device)
    with torch.no_grad():
        tile_vae(backbone.vae, recipe.vae_tile)
        synchronize()
        start = time.perf_counter()
        clip = generate(backbone, recipe, [PROMPT], [0], clock=clock, cache=LowFlowCache())
        synchronize()
        wall = time.perf_counter() - start
    if not torch.isfinite(clip.latent).all():
        raise UserError("the latent holds NaN or infinity: nothing was measured")
    return clock, wall, fmean(clip.reports[0]["density"].values())


def row_of(v: Variant, native: Variant, device: str) -> dict[str, Any]:
    """One variant beside native and beside the runtime model, at the rates that native reached."""
    measured = {k: native.seconds()[k] for k in ("hr", "decode")}
    flops = {s.name: s.flops for s in native.costs.stages}
    rate = {"transformer": flops["hr"] / measured["hr"]}  # FLOP/s
    rate["vae"] = flops["decode"] / measured["decode"]
    guess, whole = (
        {s.name: s.flops / rate[s.part] for s in of.costs.stages if s.part in rate}
        for of in (v, native)
    )
    stages = {}
    counted = {s.name: s for s in v.costs.stages if s.name != "text"}
    resident = v.costs.weights.vae + v.costs.weights.transformer[0]
    for name, took in v.seconds().items():
        row = stages[name] = {"seconds": sig(took)}
        if name in measured:
            row["ratio"] = sig(measured[name] / max(took, 1e-9))
        if stage := counted.get(name):
            peak = max(c.peak_mib[name] for c in v.clocks) / 1024
            estimate = (resident + stage.bytes) / GIB
            row |= {"tokens": stage.tokens, "tflop": sig(stage.flops / 1e12)}
            row |= {"model_seconds": sig(guess.get(name, 0.0)), "peak_gib": sig(peak, 4)}
            row["estimated_peak_gib"] = sig(estimate, 4)
            # a CPU's peak is the whole process: nothing to compare with
            row["estimate_over_measured"] = sig(estimate / peak) if device == "cuda" else None
    times, total = summed_up(v.walls), sum(guess.values())
    return {
        **{"variant": v.name, "method": v.recipe.method, "density": sig(v.density), **times},
        "ratio": sig(median(native.walls) / times["seconds"]),
        "stages": stages,
        "model": {
            "seconds": sig(total),
            "ratio": sig(sum(whole.values()) / total),
            "tflops_reached": {k: sig(x / 1e12) for k, x in rate.items()},
        },
    }


def choose(
    backbone: Any, origin: Origin, sizes: list, args: Any, result: Result
) -> dict[str, Variant]:
    """The variants at the largest size that fits the memory and the minutes."""
    family = "tiny" if args.backbone == "micro" else "wan"
    counted = args.device == "cuda"
    memory = torch.cuda.mem_get_info()[1] / GIB if counted else float("inf")
    step = seconds_per_flop(backbone, origin, family, sizes[-1]) if counted else 0.0
    for size in sizes:
        recipes = recipes_of(args, size)
        costs = {name: measure(blank(family, origin), r) for name, r in recipes.items()}
        needed = max(c.peak(s) for c in costs.values() for s in c.stages) / GIB
        needed = needed * SLACK + CONTEXT_GIB
        stages = [s for c in costs.values() for s in c.stages]
        flops = sum(s.flops / (VAE_SHARE if s.part == "vae" else 1) for s in stages)
        minutes = flops * step * 1.5 / 60  # and the warm-up
        if counted:
            print(f"{size[1]} x {size[2]}: {needed:.1f} GiB, {minutes:.1f} minutes")
        if needed <= memory and 60 * minutes <= result.left():
            return {name: Variant(name, r, costs[name]) for name, r in recipes.items()}
    raise UserError(f"nothing fits {args.minutes:g} minutes; type --minutes {minutes + 1:.0f}")


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
    run(main)
