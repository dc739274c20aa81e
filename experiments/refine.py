"""A clip that exists, refined to 2x: rendered LR clips against the true HR render of the same scene.

    python experiments/refine.py [--prompts 32] [--t-i 8]

Cost: seven minutes on two cores. Held-out prompts, seed 0. Rows: bicubic, the cascade with full
attention, S2Flow. Per row: PSNR against the true render in dB, detail and grid as shares of its own,
`whole`, and the oracle's agreement; means with 95 % intervals over prompts. Writes
experiments/results/refine_micro.json and .png.
"""

import argparse
import sys

import torch
from backbone_card import summary
from script import RESULTS, result, write_result

import s2flow
from s2flow.embedded.world import WORLDS, held_out_captions
from s2flow.metrics import paired_difference
from s2flow.scorers.fidelity import psnr
from s2flow.scorers.world import WorldAgreement, renders
from s2flow.training.sheets import table

ROWS = {
    "bicubic": {"method": "bicubic"},
    "cascade": {"method": "cascade"},
    "s2flow s=.5": {"sparsity": 0.5},
    "s2flow s=.25": {"sparsity": 0.25},
}


def main() -> None:
    """Render, refine, read, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--t-i", type=int, help="HR steps of 20; default: the backbone's")
    args = parser.parse_args()
    scorer = WorldAgreement("micro")
    texts = held_out_captions(WORLDS["micro"], args.prompts)
    low, high = (
        list(renders(texts, scorer.world, (8, h, w), each=1)) for h, w in ((32, 48), (64, 96))
    )
    videos = {"LR render": low, "HR render": high}
    for row, knobs in ROWS.items():
        more = {} if args.t_i is None else {"t_i": args.t_i}
        made = [
            s2flow.generate("micro", text, video=clip, **knobs, **more)
            for text, clip in zip(texts, low, strict=True)
        ]
        videos[row] = [torch.from_numpy(m.frames[0]) for m in made]
    about = {
        "backbone": "micro",
        "weights": made[0].recipe["weights"],
        "t_i": made[0].recipe["t_i"],
    }
    card = result("refine", sys.argv[1:], **about, prompts=args.prompts, means={})
    for row in ("HR render", *ROWS):
        found = summary(scorer, videos[row], [(t, 0) for t in texts])["means"]
        names = ("world_agreement", "whole", "debris", "detail", "grid")
        card["means"][row] = {name: found[name] for name in names}
        if row != "HR render":
            db = {t: psnr(a, b) for t, a, b in zip(texts, videos[row], high, strict=True)}
            d = paired_difference(db, dict.fromkeys(db, 0.0))
            card["means"][row]["psnr"] = [round(x, 2) for x in (d.mean, d.low, d.high)]
        print(f"{row:14s}", {k: v[0] for k, v in card["means"][row].items()})
    write_result(RESULTS / "refine_micro.json", card)
    sheet = table({row: torch.stack(v[:8]) for row, v in videos.items()}, texts[:8])
    sheet.quantize(256).save(RESULTS / "refine_micro.png")


if __name__ == "__main__":
    main()
