"""How well the embedded backbone follows its prompts at its own (low) resolution.

    python experiments/world_agreement.py [--prompts 128] [--backbone micro] [knob=value ...]

Samples one LR clip per held-out prompt, lets the attribute oracle read it (raw frames, no mp4), and
prints as its last line one JSON object with the agreement per attribute. Also writes
experiments/results/<backbone>_agreement.json; with knobs (steps=10 guidance=2 ...), which tell what
fewer forwards cost, <backbone>_agreement_<knobs>.json. Chance is 1/6 for shape and background, 1/8 for
colour and motion, 1/2 for texture (micro).
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean

from hydra import compose, initialize_config_dir

import s2flow.config
from s2flow import methods
from s2flow.backbones import tiny
from s2flow.cascade import Cascade
from s2flow.provenance import provenance
from s2flow.scorers import Clip
from s2flow.scorers.world import WorldAgreement
from s2flow.tasks import clip_tasks

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Sample, read, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--backbone", default="micro")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("knobs", nargs="*", help="as of run.py: steps=10 guidance=2")
    args = parser.parse_args()
    words = [f"backbone={args.backbone}", "method=bicubic", "prompts=world"]
    words += [f"prompts.count={args.prompts}", *args.knobs]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=words)
    backbone, oracle = tiny.load(args.backbone, "cpu"), WorldAgreement(args.backbone)
    recipe = s2flow.config.resolve(cfg, "", methods.method("bicubic").KNOBS)
    tasks, rows, seconds = clip_tasks(cfg), [], 0.0
    for i in range(0, len(tasks), args.batch):
        group = tasks[i : i + args.batch]
        run = Cascade(backbone, recipe, [t.prompt for t in group], [t.seed for t in group])
        low = run.low_flow()
        seconds += low.seconds
        video = backbone.decode(low.flow.z[0])
        rows += [
            oracle(Clip.of(v, t.prompt, t.seed, Path())) for v, t in zip(video, group, strict=True)
        ]
        print(f"{len(rows)}/{len(tasks)} clips", flush=True)
    agreement = {k: round(fmean(r[k] for r in rows), 4) for k in rows[0] if k != "object_count"}
    agreement["one_object"] = round(fmean(r["object_count"] == 1 for r in rows), 4)
    result = {
        "command": " ".join(["python", "experiments/world_agreement.py", *sys.argv[1:]]),
        "backbone": args.backbone,
        "weights": tiny.weights_hash(args.backbone),
        "guidance": recipe.guidance,
        "steps": recipe.steps,
        "lr_seconds_per_clip": round(seconds / len(rows), 3),
        "prompts": len(rows),
        **{k: v for k, v in provenance("cpu").items() if k not in ("command", "host")},
        "agreement": agreement,
    }
    name = "_".join([args.backbone, "agreement", *args.knobs])
    path = ROOT / "experiments" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(agreement))


if __name__ == "__main__":
    main()
