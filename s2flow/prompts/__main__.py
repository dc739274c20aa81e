"""`python -m s2flow.prompts vbench half [--seed 0]`: a subset as indices, with hashes.

Prints, or writes, one line of JSON: the hash of the source file, and of the indices as decimal numbers,
one a line. No text is copied. `vbench_half.json` beside this file was written by

    python -m s2flow.prompts vbench half --out s2flow/prompts/vbench_half.json
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from s2flow.errors import UserError, print_error
from s2flow.prompts import SOURCES, SUBSETS, VBENCH, installed_vbench_file, load_prompts, select


def main(argv: list[str] | None = None) -> int:
    """Print or write a subset; returns 2 after an error."""
    parser = argparse.ArgumentParser(
        prog="python -m s2flow.prompts", description="The indices of a subset of prompts, hashed."
    )
    parser.add_argument("source", choices=SOURCES)
    parser.add_argument("subset", help=f"{', '.join(SUBSETS)}, or a dimension of VBench")
    parser.add_argument("--seed", type=int, default=0, help="draws the half (default: 0)")
    parser.add_argument("--file", help="a list of your own, or VBench's elsewhere")
    parser.add_argument("--out", type=Path, help="write to this file instead of printing")
    args = parser.parse_args(argv)
    source, given = args.source, {"subset": "full", "seed": args.seed, "shard": "1/1"}
    try:
        prompts = load_prompts(source, file=args.file, count=None, **given)
        indices = [p.index for p in select(prompts, args.subset, args.seed)]
        if source in ("file", "vbench"):
            path = Path(args.file).expanduser() if args.file else installed_vbench_file()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            source = {"file": path.name, "sha256": digest, "entries": len(prompts)}
            source = VBENCH if digest == VBENCH["sha256"] else source
        digest = hashlib.sha256("".join(f"{i}\n" for i in indices).encode()).hexdigest()
        found = {"source": source, "subset": args.subset, "seed": args.seed, "count": len(indices)}
        text = json.dumps(found | {"sha256": digest, "indices": indices}) + "\n"
        if args.out is None:
            print(text, end="")
        else:
            args.out.write_text(text, encoding="utf-8")
    except (UserError, OSError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
