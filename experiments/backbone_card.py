"""What the embedded backbone does at LR and HR: the figures of its card, and the README's picture.

    python experiments/backbone_card.py [--prompts 64] [--seeds 2] [--factors 2 1.5 3] [--weights DIR]

Cost: half an hour on two cores. Held-out prompts (factors other than 2: one seed), raw frames, every
measure of s2flow/scorers/world.py, means with 95 % intervals over prompts, beside those of true
renders; every row minus the cascade, prompt by prompt. Writes to experiments/results/
`<backbone>_card.json`, `<backbone>_gallery.png` (the first 8 prompts of seed 0 at 2x) and
`<backbone>_sheet.png` (the first 32).
"""

import argparse
import sys
from pathlib import Path
from statistics import fmean

import torch
from configs import composed, recipe_of
from script import RESULTS, result, write_result

from s2flow import methods
from s2flow.embedded import backbone as tiny
from s2flow.embedded.world import WORLDS, held_out_captions
from s2flow.metrics import PairedDifference, paired_difference
from s2flow.scorers import Clip
from s2flow.scorers.oracle import features
from s2flow.scorers.world import WorldAgreement, frechet_distance, renders
from s2flow.store.lowflow import LowFlowCache
from s2flow.training.sheets import table

ROWS = {
    "native": "method=native",
    "native rope=interpolate": "method=native rope=interpolate",
    "cascade": "method=cascade",
    "cascade rope=interpolate": "method=cascade rope=interpolate",
    "s2flow s=.5": "sparsity=0.5",
    "s2flow s=.25": "sparsity=0.25",
}
BRICKS = {  # LR and HR bricks that divide both grids
    "1.5": "brick_low=[1,2,2] brick_high=[1,3,3]",
    "2": "",
    "3": "brick_low=[1,1,1] brick_high=[1,3,3]",
}
ELSEWHERE = ("native", "cascade", "s2flow s=.5")  # at other factors than 2


def main() -> None:
    """Sample, read, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="micro")
    parser.add_argument("--weights", type=Path, help="an exported folder; default: what ships")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--factors", nargs="+", choices=list(BRICKS), default=["2", "1.5", "3"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("knobs", nargs="*", help="as of run.py: t_i=10 guidance=3")
    args = parser.parse_args()
    backbone = tiny.load(args.backbone, "cpu", args.weights)
    texts = held_out_captions(WORLDS[args.backbone], args.prompts)
    scorer, found, shown = WorldAgreement(args.backbone), {}, {}
    for factor in args.factors:
        cache, videos = LowFlowCache(), {}
        seeds = range(args.seeds if factor == "2" else 1)
        clips = [(t, s) for s in seeds for t in texts]
        for row in ROWS if factor == "2" else ELSEWHERE:
            words = [*ROWS[row].split(), *BRICKS[factor].split(), *args.knobs]
            low, videos[row] = sample(backbone, args, clips, words, float(factor), cache)
            if low and "LR" not in found:
                found["LR"] = summary(scorer, low, clips)
                shown["LR"] = low
        frames = tuple(videos["native"][0].shape[:3])
        videos["render"] = list(renders([t for t, _ in clips], scorer.world, frames, each=1))
        for row, made in videos.items():
            found[f"{factor}x {row}"] = summary(scorer, made, clips)
        if factor == "2":
            shown = {"render": videos["render"]} | shown
            shown |= {row: videos[row] for row in ELSEWHERE}
    for name, count in (("gallery", 8), ("sheet", 32)) if shown else ():
        sheet = table({row: torch.stack(v[:count]) for row, v in shown.items()}, texts[:count])
        sheet.quantize(256).save(args.out / f"{args.backbone}_{name}.png")
    write(args, found)


def sample(backbone, args, clips, words, factor, cache):
    """LR videos, None where the row has none, and HR videos (T, H, W, 3) of every clip."""
    cfg = composed([f"backbone={args.backbone}", *words])
    cfg.high = [round(side * factor) for side in cfg.backbone.low]
    recipe = recipe_of(cfg)
    low, high = [], []
    for k in range(0, len(clips), args.batch):
        prompts, seeds = zip(*clips[k : k + args.batch], strict=True)
        made = methods.generate(backbone, recipe, prompts, seeds, cache=cache)
        high += made.video
        low += [] if made.low_video is None else made.low_video
    return low or None, high


def summary(scorer: WorldAgreement, videos: list, clips: list[tuple[str, int]]) -> dict:
    """Every measure's mean and 95 % interval over prompts, and the values of each prompt."""
    each: dict[str, dict[str, list[float]]] = {}
    for video, (text, seed) in zip(videos, clips, strict=True):
        scores = scorer.score(Clip.of(video, text, seed))
        scores["one_object"] = float(scores["object_count"] == 1)
        for name, value in scores.items():
            each.setdefault(name, {}).setdefault(text, []).append(value)
    by_prompt = {name: {t: fmean(v) for t, v in values.items()} for name, values in each.items()}
    zero = {name: dict.fromkeys(values, 0.0) for name, values in by_prompt.items()}
    means = {k: _ends(paired_difference(values, zero[k])) for k, values in by_prompt.items()}
    true = renders(list(dict.fromkeys(t for t, _ in clips)), scorer.world, videos[0].shape[:3])
    distance = frechet_distance(features(scorer.oracle, videos), features(scorer.oracle, true))
    return {"means": means | {"frechet_distance": [round(distance, 1)]}, "by_prompt": by_prompt}


def _ends(d: PairedDifference) -> list[float]:
    return [round(x, 4) for x in (d.mean, d.low, d.high)]


def write(args: argparse.Namespace, found: dict) -> None:
    """The result file, and a table on the terminal."""
    differences = {}
    for row, of in found.items():
        factor, _, name = row.partition(" ")
        if f"{factor} cascade" in found and name not in ("", "render", "cascade"):
            ours, base = of["by_prompt"], found[f"{factor} cascade"]["by_prompt"]
            names = ("world_agreement", "whole", "debris", "detail")
            differences[row] = {n: _ends(paired_difference(ours[n], base[n])) for n in names}
    weights = tiny.weights_hash(args.backbone) if args.weights is None else "of --weights"
    about = {"backbone": args.backbone, "weights": weights, "prompts": args.prompts}
    card = result("backbone_card", sys.argv[1:], **about, seeds=args.seeds)
    card["means"] = {row: of["means"] for row, of in found.items()}
    card["minus_cascade"] = differences
    path = args.out / f"{args.backbone}_card.json"
    write_result(path, card)
    names = ("world_agreement", "world_shape", "repetition", "whole", "debris", "detail", "grid")
    for row, of in found.items():
        cells = " ".join(f"{n.removeprefix('world_')} {of['means'][n][0]:.3f}" for n in names)
        print(f"{row:26s} {cells}")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
