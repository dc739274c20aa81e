"""`python -m s2flow.costs`: the paper's timings beside the same cost model on a GPU of yours.

    python -m s2flow.costs                                            HunyuanVideo on this machine's GPU
    python -m s2flow.costs --device-name H200 --ranks 8               on other GPUs, context parallel
    python -m s2flow.costs --backbone wan_1_3b --device-name 4090     another backbone at its own sizes
    python -m s2flow.costs --low 480x832 --high 960x1664 --frames 61 --tflops 300 --json x.json
    python -m s2flow.costs --measure --json rates.json                time this machine's device
    python -m s2flow.costs --rates rates.json                         and use that

Needs neither weights nor a GPU. Sizes are HEIGHTxWIDTH. An error is one line and exit status 1.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from s2flow.costs import table
from s2flow.costs.clock import RATES, Rates, known, rates_of
from s2flow.costs.measured import load_rates, measure_rates
from s2flow.costs.paper import figure6, forwards, paper_clock, speedups, table1, table2
from s2flow.costs.yours import model
from s2flow.errors import UserError

KNOBS = ("low", "high", "frames", "steps", "t_i", "sparsity", "density", "windows", "solver")
KNOBS += ("order",)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m s2flow.costs",
        description="The paper's clock beside a model of the same method on your own GPU.",
    )
    clip = parser.add_argument_group("the clip (default: the backbone's own sizes and steps)")
    clip.add_argument("--backbone", default="hunyuan", help="a name of conf/backbone [hunyuan]")
    clip.add_argument("--low", type=_size, metavar="HxW", help="LR size in pixels, as 768x1280")
    clip.add_argument("--high", type=_size, metavar="HxW", help="HR size in pixels, as 1536x2560")
    clip.add_argument("--frames", type=int)
    clip.add_argument("--steps", type=int)
    clip.add_argument("--t-i", type=int, help="HR steps that remain at the hand-off")
    clip.add_argument("--sparsity", type=float, help="share that is kept [0.5]")
    clip.add_argument("--density", help="what it is a share of: volume | per_axis [volume]")
    clip.add_argument("--windows", help="a name of conf/windows [adaptive]")
    clip.add_argument("--solver", help="lri | euler | ab2 | ... ; heun takes two forwards a step")
    clip.add_argument("--order", type=int, help="K of lri; costs no forward")
    clip.add_argument("--batch", type=int, default=1, help="clips made together [1]")
    device = parser.add_argument_group("the device (default: this machine's GPU, else an H100)")
    device.add_argument("--device-name", help=f"one of {', '.join(RATES)}, or yours with --tflops")
    device.add_argument("--ranks", type=int, default=1, help="GPUs that share one clip [1]")
    device.add_argument("--tflops", type=float, help="achieved by the transformer, TFLOP/s")
    device.add_argument("--bandwidth", type=float, help="achieved by the memory, GB/s")
    device.add_argument("--link", type=float, help="that each GPU sends to others, GB/s")
    device.add_argument("--rates", type=Path, metavar="FILE", help="measured before (--measure)")
    device.add_argument(
        "--measure", action="store_true", help="time this machine's device and end"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there, too")
    return parser


def _size(text: str) -> list[int]:
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(s.isdigit() for s in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; type HEIGHTxWIDTH, as 768x1280")
    return [int(s) for s in sides]


def _device(args: argparse.Namespace) -> tuple[str, Rates]:
    """(device, rates): from --rates, --device-name, this machine's GPU, or an H100."""
    given = {k: getattr(args, k) for k in ("tflops", "bandwidth", "link")}
    name, memory = args.device_name, None
    if name is not None and known(name) is None and None in (args.tflops, args.bandwidth):
        raise UserError(
            f"--device-name {name} is not known; type one of {', '.join(RATES)}, or --tflops and "
            "--bandwidth beside it"
        )
    if name is None and torch.cuda.is_available():
        here = torch.cuda.get_device_properties(0)
        name, memory = here.name, here.total_memory / 2**30
    if args.rates is not None:
        return name or str(args.rates), load_rates(args.rates).having(**given)
    if name is None:
        return "H100 (no GPU here; --device-name names another)", RATES["H100"].having(**given)
    return name, rates_of(name, memory, **given)


def main(argv: list[str] | None = None) -> int:
    """Print the tables, or the rates; returns the exit status."""
    args = _arguments().parse_args(argv)
    try:
        if args.measure:
            numbers = measure_rates("cuda" if torch.cuda.is_available() else "cpu")
            print(json.dumps(numbers["rates"]))
        else:
            numbers = _tables(args)
        if args.json is not None:
            _write(args.json, numbers)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _write(path: Path, numbers: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {path} cannot be written ({error.strerror})") from None


def _tables(args: argparse.Namespace) -> dict[str, Any]:
    device, rates = _device(args)
    knobs = {name: getattr(args, name) for name in KNOBS}
    yours = model(args.backbone, device, rates, args.ranks, args.batch, **knobs)
    clock = paper_clock()
    table.show(clock, yours)
    return {
        "paper": {
            "setting": clock.setting,
            "forwards": forwards(clock),
            "speedup_by_f": speedups(clock),
            "figure6": figure6(clock),
            "table1": table1(clock),
            "table2": table2(clock),
            "rest_minutes": clock.rest,
            "rest_minutes_of_s2flow": clock.rest_of_s2flow,
        },
        "yours": {
            "recipe": yours.recipe.identity(),
            "device": yours.device,
            "rates": {k: v for k, v in vars(rates).items() if v is not None},
            "ranks": yours.ranks,
            "batch": args.batch,
            "forwards": yours.forwards(),
            "stages": yours.stages(),
            "clip_minutes": yours.clips(),
        },
    }


if __name__ == "__main__":
    sys.exit(main())
