"""Command line of `python -m s2flow.training`: see the package."""

import argparse
import sys
from pathlib import Path

import torch

from s2flow.embedded.backbone import WEIGHTS
from s2flow.embedded.model import SIZES
from s2flow.training import __doc__ as about
from s2flow.training import autoencoder, flow, mask, oracle


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        "python -m s2flow.training",
        description=about,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.set_defaults(init=None, vae=None, bf16=False)
    kinds = parser.add_subparsers(required=True, metavar="autoencoder | flow | oracle")
    p = kinds.add_parser("flow", help="the flow with its text encoder")
    p.add_argument("size", choices=list(SIZES))
    p.add_argument("--state", type=Path, required=True, help="folder to train in and resume from")
    p.add_argument("--steps", type=int, default=20_000, help="in all, over every restart")
    p.add_argument("--init", type=Path, help="an exported folder to start from")
    p.add_argument("--vae", type=Path, help="folder with vae/ (default: that of --init or micro)")
    p.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=None,
                   help="default: if the processor supports it")  # fmt: skip
    p.add_argument("--compile", action="store_true", help="twice as fast; needs a C++ compiler")
    p.add_argument("--sheet-minutes", type=float, default=10, help="between sheets; 0: none")
    p.set_defaults(run=flow.train)
    p = kinds.add_parser("autoencoder", help="the autoencoder of its frames")
    p.add_argument("size", choices=list(SIZES))
    p.add_argument("--out", type=Path, required=True, help="folder that gets vae/")
    p.add_argument("--steps", type=int, default=3000)
    p.add_argument("--encoder", type=Path, help="an exported folder whose encoder is kept")
    p.add_argument("--flow", type=Path, help="an exported folder whose flow makes latents")
    p.set_defaults(run=autoencoder.train)
    p = kinds.add_parser("mask", help="the network that segments the pixels of objects")
    p.add_argument("--clips", type=int, default=40_000)
    p.set_defaults(run=mask.train)
    p = kinds.add_parser("oracle", help="the network that reads a clip's attributes")
    p.add_argument("size", choices=list(oracle.SIZES))
    p.add_argument("--clips", type=int, default=80_000, help="renders to learn from")
    p.add_argument("--resume", action="store_true", help="go on from the shipped weights")
    p.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    p.add_argument("--seed", type=int, default=0, help="another one when resuming")
    p.add_argument("--failures", type=Path, help="clips of a model that breaks its objects")
    p.set_defaults(run=oracle.main)
    for p in kinds.choices.values():
        p.add_argument("--threads", type=int, default=1)
        p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.command = " ".join(["python -m s2flow.training", *sys.argv[1:]])
    for folder in (args.init, args.vae):
        if folder is not None and not (folder / "vae" / "config.json").exists():
            parser.error(f"{folder} holds no exported weights (card.json, transformer/, vae/)")
    args.vae = args.vae or args.init or WEIGHTS / "micro"
    torch.set_num_threads(args.threads)
    if args.bf16 is None:
        args.bf16 = args.device != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    args.run(args)


if __name__ == "__main__":
    main()
