"""`python -m s2flow.attention`: which attention backends are usable here, and why the others are not.

For each one the self-check of `dispatch.py` is run, on the device, type, head_dim and brick given; the
first usable one is what attention=auto takes. Exit code 0; 2 for arguments that cannot be.
"""

import argparse

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from s2flow.attention import dispatch
from s2flow.attention.problem import Problem

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> None:
    """Print the table."""
    there = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog="python -m s2flow.attention", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--device", default="cuda" if there else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16" if there else "float32", choices=TYPES)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--brick", type=int, nargs=3, default=(2, 8, 8), metavar=("T", "H", "W"))
    args = parser.parse_args()
    if args.device == "cuda" and not there:
        parser.error("--device cuda: no CUDA device is here; type --device cpu")
    if not 1 <= args.head_dim <= 1024 or not all(1 <= b <= 1024 for b in args.brick):
        parser.error("--head-dim and --brick must be from 1 to 1024")
    brick, device = tuple(args.brick), torch.empty(0, device=args.device).device
    problem = Problem(brick, brick, args.head_dim, TYPES[args.dtype], device)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("attention", "usable", "why not"):
        table.add_column(column)
    for name in dispatch.NAMES:
        reason = dispatch.why_not(name, problem)
        table.add_row(name, "no" if reason else "yes", reason or "")
    console = Console()
    console.print(table)
    console.print(f"attention=auto is {dispatch.choose(problem)} on {args.device}")


if __name__ == "__main__":
    main()
