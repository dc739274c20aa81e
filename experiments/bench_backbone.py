"""Wan 2.1 1.3B with random weights on one GPU, LR and HR end to end: measured beside the estimate.

    python experiments/bench_backbone.py --minutes 10
    cost      the minutes, on one GPU with 24 GiB or more; --tiny: a minute on a CPU, for a look
    expected  peak memory of every stage within 20 % of `s2flow.costs`

No checkpoint is needed: time and memory do not depend on the weights' values. The size is the largest
of SIZES that by the estimate fits the memory, and by one measured forward and the estimate's FLOPs
the time. There are few steps, so that attention, not their number, fills the time; `seconds` are of
this schedule. Writes experiments/results/bench_backbone.json with device, versions, commit and command.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from hydra import compose, initialize_config_dir

import s2flow.config as config
from s2flow.backbones.base import Origin
from s2flow.backbones.blank import blank, cast
from s2flow.backbones.placement import tile_vae
from s2flow.backbones.published import WAN_1_3B
from s2flow.backbones.wan import WanBackbone
from s2flow.cascade import Cascade
from s2flow.costs import GIB, RESERVE, SLACK, VAE_SHARE, forward_cost, measure
from s2flow.methods import method
from s2flow.provenance import provenance
from s2flow.recipe import Recipe
from s2flow.timing import Clock

ROOT = Path(__file__).parent.parent
SIZES = [  # (LR, HR, frames, brick at LR, brick at HR), largest first; the first is the paper's
    ((768, 1280), (1536, 2560), 117, (2, 4, 4), (2, 8, 8)),
    ((768, 1280), (1536, 2560), 81, (1, 4, 8), (1, 8, 16)),
    ((480, 832), (960, 1664), 81, (3, 2, 4), (3, 4, 8)),
    ((480, 832), (960, 1664), 25, (1, 2, 4), (1, 4, 8)),
    ((256, 448), (512, 896), 17, (1, 2, 2), (1, 4, 4)),
]
TINY_SIZE = ((32, 32), (64, 64), 5, (1, 1, 1), (1, 2, 2))
TINY = {
    "transformer": WAN_1_3B | {"num_attention_heads": 2, "num_layers": 2, "ffn_dim": 512},
    "vae": {"base_dim": 8},
}


def main() -> None:
    """Build, choose a size, run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="time budget of the clip")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--t-i", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a toy configuration, on a CPU")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        sys.exit("error: no CUDA device is here; type --tiny to see on a CPU that this runs")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        configs = write_configs(Path(folder), args.tiny)
        dtype = "float32" if args.tiny else "bfloat16"
        origin = Origin("bench", str(configs), None, dtype)
        found = bench(args, origin)
    args.out.mkdir(exist_ok=True)
    name = "bench_backbone_tiny.json" if args.tiny else "bench_backbone.json"
    (args.out / name).write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def bench(args: argparse.Namespace, origin: Origin) -> dict[str, Any]:
    """Everything that is written, stage by stage."""
    device = "cpu" if args.tiny else "cuda"
    backbone = build(origin, device)
    step = seconds_per_flop(backbone, origin, TINY_SIZE if args.tiny else SIZES[-1])
    recipe, costs = choose(args, origin, device, step)
    tile_vae(backbone.vae, recipe.vae_tile)
    clock = Clock(device)
    made = method("s2flow").generate(
        BlankCascade(backbone, recipe, [""], [0], clock, progress=progress)
    )
    assert torch.isfinite(made.latent).all(), "the latent holds NaN or infinity"
    resident = costs.weights.vae + costs.weights.transformer[0]  # no text encoder is loaded
    stages = {}
    for s in costs.stages:
        if s.name in clock.seconds and s.name != "text":
            peak = clock.peak_mib[s.name] / 1024
            guess = (resident + s.bytes) / GIB
            stages[s.name] = {
                "tokens": s.tokens,
                "seconds": round(clock.seconds[s.name], 3),
                "tflop": round(s.flops / 1e12, 3),
                "achieved_tflops": round(s.flops / 1e12 / max(clock.seconds[s.name], 1e-9), 3),
                "peak_gib": round(peak, 3),
                "estimated_peak_gib": round(guess, 3),
                # a CPU's peak is the whole process: nothing to compare with
                "estimate_over_measured": None if device == "cpu" else round(guess / peak, 3),
            }
    known = {k: v for k, v in provenance(device).items() if k not in ("command", "host")}
    report = made.reports[0]
    return {
        "command": f"python experiments/bench_backbone.py {' '.join(sys.argv[1:])}".strip(),
        **known,
        "note": "random weights; peak_gib is torch.cuda.max_memory_allocated"
        if device == "cuda"
        else "toy configuration on a CPU, whose peak is the process's: only to see that it runs",
        "recipe": recipe.identity(),
        "density": report["density"],
        "stages": stages,
        "seconds": {k: round(v, 3) for k, v in clock.seconds.items()},
    }


def write_configs(folder: Path, tiny: bool) -> Path:
    """model_index.json, config.json of transformer, autoencoder and a text encoder of no size."""
    parts = TINY if tiny else {"transformer": WAN_1_3B, "vae": {}}
    text = {"vocab_size": 8, "d_model": 8, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1}
    index = {}
    for part, conf in {**parts, "text_encoder": text}.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(conf))
        index[part] = ["diffusers", None]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def build(origin: Origin, device: str) -> WanBackbone:
    """Transformer and autoencoder with small random weights, on the device; no text encoder."""
    parts = {}
    for part, cls in (
        ("transformer", diffusers.WanTransformer3DModel),
        ("vae", diffusers.AutoencoderKLWan),
    ):
        conf = json.loads((Path(origin.source) / part / "config.json").read_text())
        with torch.device(device):
            parts[part] = cls.from_config(conf).eval().requires_grad_(False)
    cast(parts["transformer"], getattr(torch, origin.dtype))
    return WanBackbone(origin.name, SimpleNamespace(**parts, components=parts))


class BlankCascade(Cascade):
    """Text states drawn at random instead of encoded."""

    def __init__(self, backbone: WanBackbone, *args: Any, **kwargs: Any) -> None:
        backbone.encode_prompt = lambda prompts, negative, guidance: random_text(
            backbone, len(prompts), guidance
        )
        super().__init__(backbone, *args, **kwargs)


def random_text(backbone: WanBackbone, batch: int, guidance: float) -> Any:
    """The blank condition with numbers in it."""
    condition = backbone.blank_condition(batch, guidance)
    condition.positive.normal_()
    return condition


def seconds_per_flop(backbone: WanBackbone, origin: Origin, size: tuple) -> float:
    """Of one forward at a small size: slower than at a large one, so that the budget holds."""
    shape = backbone.latent_shape(*size[1], size[2])
    z, text = torch.randn(1, *shape, device=backbone.device), random_text(backbone, 1, 5.0)
    backbone.velocity(z, 0.5, text)
    clock = Clock(backbone.device)
    with clock("forward"):
        backbone.velocity(z, 0.5, text)
    return clock.seconds["forward"] / forward_cost(blank("wan", origin), shape, 1, 5.0).flops()


def choose(args: argparse.Namespace, origin: Origin, device: str, step: float) -> tuple:
    """(recipe, costs) of the largest size that fits the memory and the minutes."""
    memory = float("inf") if args.tiny else torch.cuda.mem_get_info()[1] / GIB
    for size in [TINY_SIZE] if args.tiny else SIZES:
        r = recipe_of(args, *size)
        costs = measure(blank("wan", origin), r)
        needed = max(costs.peak(s) for s in costs.stages) / GIB * SLACK + RESERVE
        work = sum(s.flops / (VAE_SHARE if s.part == "vae" else 1) for s in costs.stages)
        minutes = work * step / 60
        print(f"{r.high} x {r.frames}: {needed:.1f} GiB, {minutes:.1f} minutes", file=sys.stderr)
        if needed <= memory and (args.tiny or minutes <= args.minutes):
            return r, costs
    sys.exit(f"error: nothing fits {args.minutes:g} minutes; type --minutes {minutes + 1:.0f}")


def recipe_of(args: argparse.Namespace, low, high, frames, brick_low, brick_high) -> Recipe:
    """The s2flow method at one size, a few steps, windows of half the volume."""
    words = ["backbone=wan_1_3b", f"steps={args.steps}", f"t_i={args.t_i}", f"frames={frames}"]
    sizes = {"low": low, "high": high, "brick_low": brick_low, "brick_high": brick_high}
    words += [f"{k}=[{','.join(map(str, v))}]" for k, v in sizes.items()]
    words += ["vae_tile=[48,32]"] if args.tiny else []
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", words)
    r = config.resolve(cfg, "random", method("s2flow").KNOBS)
    return replace(r, dtype="float32") if args.tiny else r


def progress(stage: str, done: int, total: int) -> None:
    """One line a step."""
    print(f"{stage} {done}/{total}", file=sys.stderr)


if __name__ == "__main__":
    main()
