"""The autoencoders of Wan and HunyuanVideo: seconds and peak memory of decoding and encoding, tiled.

    python experiments/bench_vae.py                     # on a GPU: LR and HR of the model's file, tiled
    python experiments/bench_vae.py --device cpu        # true width, a few small frames
    cost      a minute on two CPU cores; --minutes on a GPU (`bench_on_gpu.sh`), not yet run there
    expected  peaks within 20 % of `s2flow.costs`

True configs, random weights, float32 and the tiles of conf/backbone; the backbone's own encode and
decode, video in [0, 1] to latent and back. Peaks have the weights in; on a CPU they are the process's
and cannot be compared. ratio: over the untiled call of the same group, with --whole. Writes
results/bench_vae_<device>.json with picture.
"""

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import torch
from benching import Result, checked, interleaved, parser_of, sig, summed_up
from random_models import Model, assumed_rate, build, model, sizes_of
from script import run
from torch import Tensor

from s2flow.backbones.tiles import tile_vae
from s2flow.costs.blank import blank
from s2flow.costs.clock import VAE_SHARE
from s2flow.costs.stages import GIB
from s2flow.costs.vae import vae_cost
from s2flow.process.timing import Clock

MODELS = ("wan_1_3b", "hunyuan")
SMALL = {"lr": (32, 48), "hr": (64, 96)}  # pixels on a CPU, in one tile each
SMALL_FRAMES = 5


def main() -> None:
    """LR of both, then HR, as far as the time goes."""
    parser = parser_of(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--sizes", nargs="+", choices=("lr", "hr"), default=("lr", "hr"))
    parser.add_argument("--tiny", action="store_true", help="toy width")
    parser.add_argument("--whole", action="store_true", help="beside tiles, whole frames")
    args = checked(parser.parse_args())
    result = Result("vae", args, "toy" * args.tiny, toy=args.tiny, small=args.device == "cpu")
    speed: dict[tuple, float] = {}  # seconds a FLOP, of what was measured at a smaller size
    for size, name in itertools.product(args.sizes, args.models):
        with model(name, args.tiny) as known:
            backbone = build(known, args.device, ("vae",))
            for work in ("decode", "encode"):
                measure(known, backbone, size, work, args, result, speed)
    result.finish()


def measure(
    known: Model,
    backbone: Any,
    word: str,
    work: str,
    args: argparse.Namespace,
    result: Result,
    speed: dict,
) -> None:
    """Decode or encode of one model at one size."""
    small, problem, what = (
        args.device == "cpu",
        sizes_of(known)[word],
        f"{known.name} {word} {work}",
    )
    size, frames = (SMALL[word], SMALL_FRAMES) if small else (problem.size, problem.frames)
    tile = None if small else tuple(known.conf.vae_tile)
    tiles = (tile, None) if args.whole and tile else (tile,)
    estimates = {t: estimated(known, work, size, frames, t) for t in tiles}
    rate = assumed_rate(result.data["device"]) * VAE_SHARE * 1e12
    once = sum(e.flops for e, _ in estimates.values()) * speed.get((known.name, work), 1 / rate)
    if not result.time_for(what, 4 * once):
        return
    given = example(backbone, work, size, frames)
    calls = {t: call_of(backbone, work, given, t) for t in tiles}
    repeats = args.repeats if 12 * once < result.left() else 1
    times, failed = interleaved(calls, args.device, repeats, 60 * args.minutes / 8)
    result.failed(what, failed, lambda t: f"tile {t}")
    for t, seconds in times.items():
        estimate, weights = estimates[t]
        clock = Clock(args.device)
        with torch.no_grad(), clock(work):
            calls[t](0)
        row = {"model": known.name, "size": word, "work": work, "pixels": size, "frames": frames}
        row |= {"tile": t, **summed_up(seconds)}
        guess, peak = (estimate.peak + weights) / GIB, sig(clock.peak_mib[work] / 1024, 4)
        guesses = {"seconds": sig(estimate.flops / rate), "peak_gib": sig(guess, 4)}
        over = None if small else sig(guesses["peak_gib"] / peak, 4)
        row |= {
            "tflop": sig(estimate.flops / 1e12),
            "estimate": guesses | {"peak_over_measured": over},
            "assumed_tflops": rate / 1e12,
            "achieved_tflops": sig(estimate.flops / 1e12 / row["seconds"], 4),
            "peak_gib": peak,
        }
        if None in times and t is not None:
            row["ratio"] = sig(row["seconds"] / summed_up(times[None])["seconds"])
        speed[known.name, work] = row["seconds"] / estimate.flops
        result.add("rows", row)
        print(
            f"{what} {size[0]}x{size[1]}x{frames}: {row['seconds']:.4g} s (s2flow.costs "
            f"{guesses['seconds']:.4g}), {peak:.3g} GiB ({guesses['peak_gib']:.3g})"
        )


def estimated(known: Model, work: str, size: tuple, frames: int, tile: Any) -> tuple:
    """(`s2flow.costs.trace.Trace` of the call, bytes of the autoencoder's weights), from configs."""
    backbone = blank(known.family, known.origin)
    tile_vae(backbone.vae, tile)
    given = example(backbone, work, size, frames)
    cost = vae_cost(backbone.vae, lambda: getattr(backbone, work)(given))
    weights = sum(p.numel() * p.element_size() for p in backbone.vae.parameters())
    return cost, weights + given.nbytes


def example(backbone: Any, work: str, size: tuple, frames: int) -> Tensor:
    """A latent to decode, or a video to encode, random, on the backbone's device."""
    if work == "decode":
        shape = backbone.latent_shape(*size, frames)
        return torch.randn(1, *shape, device=backbone.device)
    return torch.rand(1, frames, *size, 3, device=backbone.device)


def call_of(backbone: Any, work: str, given: Tensor, tile: Any) -> Callable[[int], Tensor]:
    """The backbone's own call, in these tiles."""

    def call(i: int) -> Tensor:
        tile_vae(backbone.vae, tile)
        return getattr(backbone, work)(given)

    return call


if __name__ == "__main__":
    run(main)
