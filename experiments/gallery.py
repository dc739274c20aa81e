"""Held-out prompts by every method: pictures, and the numbers beside them.

    python experiments/gallery.py [--prompts 64] [--backbone micro] [--methods native cascade ...]

Makes whatever clips are missing under runs/ (the same clips that `run.py` makes), then writes to
experiments/results/ `<backbone>_gallery.png` (8 prompts, the README's picture),
`<backbone>_sheet.png` (32 prompts) and `<backbone>_gallery.json`. Rows of the pictures are prompts;
per method the first, middle and last frame. The numbers, read from the mp4 by the attribute oracle
(s2flow/scorers/world.py): means over the prompts; the Frechet distance to true renders of the same
captions at the same size; and of native minus each other method, prompt by prompt, the mean with
its 95 % bootstrap interval.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

import torch
from hydra import compose, initialize_config_dir
from PIL import Image, ImageDraw

import s2flow.config  # noqa: F401
from s2flow.backbones import tiny
from s2flow.metrics import paired_difference
from s2flow.provenance import provenance
from s2flow.runner import run
from s2flow.scorers import Clip
from s2flow.scorers.world import WorldAgreement, features, frechet_distance, renders
from s2flow.video import read_video

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PICTURES = {"gallery": 8, "sheet": 32}  # rows of each


def main() -> None:
    """Make, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--backbone", default="micro")
    parser.add_argument("--methods", nargs="+", default=["native", "cascade", "s2flow"])
    parser.add_argument("--runs", default="runs")
    args = parser.parse_args()
    records = {m: _records(args, m) for m in args.methods}
    clips = {m: [_video(args, r) for r in found] for m, found in records.items()}
    oracle = WorldAgreement(args.backbone)
    guided = next((m for m in args.methods if m != "native"), None)
    scores = {m: [r["scores"] for r in found] for m, found in records.items()}
    if guided:
        low = [_video(args, r, low=True) for r in records[guided]]
        scores = {
            "LR": [_score(oracle, v, r) for v, r in zip(low, records[guided], strict=True)]
        } | scores
        clips = {"LR": low} | clips
    for row in (row for rows in scores.values() for row in rows):
        row["one_object"] = float(row["object_count"] == 1)
    prompts = [r["prompt"] for r in records[args.methods[0]]]
    RESULTS.mkdir(exist_ok=True)
    for name, rows in PICTURES.items():
        shown = {m: videos[:rows] for m, videos in clips.items()}
        _draw(prompts[:rows], shown, RESULTS / f"{args.backbone}_{name}.png")
    result = {
        "command": f"python experiments/gallery.py --prompts {args.prompts}",
        "backbone": args.backbone,
        "weights": tiny.weights_hash(args.backbone),
        **{k: v for k, v in provenance("cpu").items() if k not in ("command", "host")},
        "prompts": len(prompts),
        "methods": {
            m: _means(scores[m]) | {"frechet_distance": _frechet(oracle, clips[m], prompts)}
            for m in clips
        },
        "native_minus": {
            m: _differences(scores["native"], scores[m])
            for m in args.methods
            if m != "native" and "native" in scores
        },
        "runs": {m: found[0]["run_id"] for m, found in records.items()},
    }
    path = RESULTS / f"{args.backbone}_gallery.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: result[k] for k in ("methods", "native_minus")}, indent=1))


def _records(args: argparse.Namespace, method: str) -> list[dict]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        words = [f"method={method}", f"backbone={args.backbone}", "prompts=world"]
        words += [f"prompts.count={args.prompts}", f"runs_dir={args.runs}"]
        return run(compose("config", overrides=words))["records"]


def _video(args: argparse.Namespace, record: dict, low: bool = False) -> torch.Tensor:
    name = record["video"].replace(".mp4", ".low.mp4") if low else record["video"]
    return read_video(Path(args.runs) / record["run_id"] / name)


def _score(oracle: WorldAgreement, video: torch.Tensor, record: dict) -> dict:
    return oracle(Clip.of(video, record["prompt"], record["seed"], Path(".")))


def _means(rows: list[dict]) -> dict:
    shown = ("repetition", "detail", "one_object")
    names = [k for k in rows[0] if k.startswith("world_") or k in shown]
    return {k: round(fmean(r[k] for r in rows), 4) for k in names}


def _frechet(oracle: WorldAgreement, clips: list[torch.Tensor], prompts: list[str]) -> float:
    true = renders(prompts, oracle.world, tuple(clips[0].shape[:3]))
    return round(
        frechet_distance(features(oracle.oracle, clips), features(oracle.oracle, true)), 2
    )


def _differences(a: list[dict], b: list[dict]) -> dict:
    found = {}
    for name in ("one_object", "repetition", "world_shape", "world_agreement"):
        d = paired_difference([r[name] for r in a], [r[name] for r in b])
        found[name] = [round(x, 4) for x in (d.mean, d.low, d.high)]
    return found


def _draw(prompts: list[str], clips: dict[str, list[torch.Tensor]], path: Path) -> None:
    height, gap, head = 64, 3, 12
    width = round(
        height * clips[next(iter(clips))][0].shape[2] / clips[next(iter(clips))][0].shape[1]
    )
    block = 3 * (width + gap) + 10
    sheet = Image.new("RGB", (block * len(clips), head + len(prompts) * (height + head)), "white")
    draw = ImageDraw.Draw(sheet)
    for j, (name, videos) in enumerate(clips.items()):
        draw.text(
            (j * block, 0), f"{name} {videos[0].shape[1]}x{videos[0].shape[2]}", fill="black"
        )
        for i, video in enumerate(videos):
            top = head + i * (height + head)
            if j == 0:
                draw.text((0, top), prompts[i], fill=(90, 90, 90))
            for k, t in enumerate((0, len(video) // 2, len(video) - 1)):
                frame = Image.fromarray((video[t] * 255).byte().numpy())
                frame = frame.resize((width, height), Image.Resampling.NEAREST)
                sheet.paste(frame, (j * block + k * (width + gap), top + head))
    sheet.quantize(256).save(path, optimize=True)  # half the size, no visible loss


if __name__ == "__main__":
    main()
