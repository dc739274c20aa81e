"""Window attention against the best dense kernel of the same machine, timed side by side.

    python experiments/bench_attention.py            # on a GPU if one is here, else small, on the CPU
    cost      2 to 4 minutes on two CPU cores; --minutes on a GPU (`bench_on_gpu.sh`); not yet run there
    expected  CPU: at f = .5 1.3 times, at .125 3.5 times as fast as dense. GPU: 95 % of 1/f against
              our own kernel run dense; 1.85, 3.4, 6 times at f = .5, .25, .125 against the best one

Writes results/bench_attention_<device>.json with picture. In it, of every size: each `dense` kernel,
the fastest as `best_dense`; `backends`, why one cannot be used here; `rows`, windows "mixed" (heads
with different candidates: what a plan is), each candidate by itself, "whole grid" (our kernel run
dense). ordered: tokens are in brick order already; false: permuted in the call. ratio: best dense
over this; share_of_1_over_f: own dense over this, times f. density: realised, of video pairs; pairs:
with text, which is always dense. `error`: rel-L2 of sampled rows against float32. `memory`: peak
bytes. `planning`: coverage of one layer (Eq. 8) over its dense attention. `sweep`: seconds against
tokens at f = .25.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from attention_rows import Bench, Size
from benching import Result, checked, dense_kernels, interleaved, judge, parser_of, sig, summed_up
from script import run

from s2flow.errors import UserError

SWEPT = 0.25  # f of the sweep over tokens
BF16, F32 = torch.bfloat16, torch.float32
SIZES = {
    "cuda": {  # both are 15 x 12 x 20 bricks
        "lr": Size((30, 48, 80), (2, 4, 4), 24, 128, 256, BF16),
        "hr": Size((30, 96, 160), (2, 8, 8), 24, 128, 256, BF16),
    },
    "cpu": {"small": Size((8, 24, 40), (2, 4, 4), 4, 32, 0, F32)},
}
SWEEP = {
    "cuda": ((6, 24, 32), (10, 32, 48), (16, 48, 80), (30, 48, 80), (30, 64, 96), (30, 96, 160)),
    "cpu": ((4, 8, 16), (4, 16, 24), (8, 16, 32), (8, 24, 40), (8, 32, 60)),
}


def main() -> None:
    """Measure what the time allows, smallest size first."""
    parser = parser_of(__doc__)
    parser.add_argument("--sizes", nargs="+", help="of " + ", ".join(SIZES["cuda"]))
    parser.add_argument("--tokens", nargs=3, type=int, help="one token grid instead of the sizes")
    parser.add_argument("--brick", nargs=3, type=int, default=(2, 4, 4))
    parser.add_argument("--heads", type=int)
    parser.add_argument("--head-dim", type=int, dest="d")
    parser.add_argument("--text", type=int)
    parser.add_argument("--rows", type=int, default=256, help="sampled for the error")
    parser.add_argument("--no-sweep", action="store_true")
    args = checked(parser.parse_args())
    sizes = sizes_of(args)
    result = Result("attention", args, sizes={})
    for i, (name, size) in enumerate(sizes.items()):
        Bench(name, size, args, result).measure()
        if i == 0 and not args.no_sweep:
            sweep(size, args, result)
    result.finish(judged(result.data))


def sizes_of(args: Any) -> dict[str, Size]:
    """The sizes asked for. Raises UserError for unknown names and numbers that are no size."""
    known = SIZES[args.device]
    names = args.sizes or list(known)
    if unknown := [n for n in names if n not in known]:
        raise UserError(f"sizes={unknown[0]} is unknown on {args.device}; type {' '.join(known)}")
    sizes = {n: known[n] for n in names}
    if args.tokens is not None:
        usual = next(iter(known.values()))
        sizes = {"own": replace(usual, tokens=tuple(args.tokens), brick=tuple(args.brick))}
    given = {k: v for k in ("heads", "d", "text") if (v := getattr(args, k)) is not None}
    sizes = {n: replace(s, **given) for n, s in sizes.items()}
    if args.rows < 1:
        raise UserError(f"rows={args.rows} is no sample; type rows of 1 or more, such as 256")
    for s in sizes.values():
        if min(*s.tokens, *s.brick, s.heads, s.d) < 1 or s.text < 0:
            raise UserError(
                f"{s} is no size; type tokens, bricks, heads and head-dim of 1 or more"
            )
    return sizes


def sweep(size: Size, args: Any, result: Result) -> None:
    """Dense and windows at f = .25 against the number of tokens, with slopes fitted in logarithms."""
    brick = (2, 8, 8) if args.device == "cuda" else size.brick
    rows = result.data.get("sweep", [])
    for tokens in SWEEP[args.device] if args.tokens is None else (size.tokens,):
        one = Bench("sweep", replace(size, tokens=tokens, brick=brick), args, result)
        guess = 1.0
        if rows:
            guess = 7.5 * rows[-1]["dense"]["seconds"] * (one.n / rows[-1]["tokens"]) ** 2
        windows = one.mixture(SWEPT)
        if not windows or not result.time_for(f"sweep, {one.n} tokens", guess):
            continue
        one.dense, _ = dense_kernels(one.sets[0][0], args.device)
        quick, _ = interleaved({n: one.dense_call(n) for n in one.dense}, args.device, 1)
        best = min(quick, key=lambda n: quick[n])
        calls = {"dense": one.dense_call(best), "window": one.call("auto", windows)}
        times = {name: summed_up(t) for name, t in one.timed(calls)[0].items()}
        row = {"tokens": one.n, "best_dense": best, "f": SWEPT}
        row |= {"density": sig(one.density(windows)), **times}
        row["ratio"] = sig(times["dense"]["seconds"] / times["window"]["seconds"])
        result.add("sweep", row)
        rows = result.data["sweep"]
    if len(rows) > 1:
        slopes = {n: slope(rows, n) for n in ("dense", "window")}
        result.put("slopes", slopes)
        print(f"seconds ~ tokens^{slopes['dense']} dense, tokens^{slopes['window']} windowed")


def slope(rows: list[dict[str, Any]], name: str) -> float:
    """Least squares of log seconds over log tokens."""
    x, y = np.log([(r["tokens"], r[name]["seconds"]) for r in rows]).T
    return round(float(np.polyfit(x, y, 1)[0]), 3)


def judged(data: dict[str, Any]) -> list[dict[str, Any]]:
    """What the project asks for, from the rows of this file; not measured: null."""

    def best(size: str, f: float, key: str, **must: Any) -> float | None:
        must |= {"size": size, "f": f, "windows": "mixed"}
        rows = [r for r in data.get("rows", []) if all(r[k] == v for k, v in must.items())]
        return max((r[key] for r in rows if r[key] is not None), default=None)

    lines = []
    for name, size in data["sizes"].items():
        if name == "own":  # nothing is asked of a size of one's own
            continue
        if memory := size.get("memory", {}).get(size.get("auto")):
            ratio = memory["in_its_order_over_dense"]
            lines.append(judge(f"{name}: peak memory over dense", 1.1, ratio, least=False))
        if size["dtype"] == "float32":
            for f, asked, goal in ((0.5, 1.3, 1.7), (0.125, 3.5, 5.0)):
                ratio = best(name, f, "ratio", backend="tiled")
                lines.append(judge(f"{name}: tiled at f = {f:g} over dense", asked, ratio, goal))
            continue
        for f, goal in ((0.5, 1.85), (0.25, 3.4), (0.125, 6.0)):
            ours = {"backend": size.get("auto"), "ordered": size.get("auto_in_bricks")}
            own = best(name, f, "share_of_1_over_f", **ours)
            lines.append(judge(f"{name}: share of 1/f at f = {f:g}, own kernel dense", 0.95, own))
            words = f"{name}: f = {f:g} over the best dense kernel, permutation included (a goal)"
            lines.append(judge(words, goal, best(name, f, "ratio", ordered=False)))
        if name == "lr":
            share = size.get("planning", {}).get("share")
            words = "lr: coverage over the layer's attention alone"
            lines.append(judge(words, 0.01, share, least=False))
    return lines


if __name__ == "__main__":
    run(main)
