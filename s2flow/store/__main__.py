"""`python -m s2flow.store`: what is in a store, whether it is whole, and what may go.

    python -m s2flow.store ls [RUNS] [--json]              a line per run
    python -m s2flow.store verify [RUNS] [--fast]          what is wrong, a line each, with the remedy
    python -m s2flow.store gc [RUNS] [--yes] [--older-than 1h]   apply the remedies, after asking
    python -m s2flow.store merge OTHER --into RUNS         bring another store's clips into this one
    python -m s2flow.store export [RUNS] --to FILE.parquet a row per clip; or FILE.csv

RUNS is the folder that run.py writes to [runs]. Exit code 0: done, nothing is wrong; 1: something was
found, is left, or could not be written; 2: what was typed cannot be. `--fast` compares sizes and not
hashes. `gc` leaves alone what is younger than --older-than (30s, 10min, 1h, 2d), since another worker
may be writing it. A run's next start looks at sizes, too; tables and export read the records alone.
"""

import argparse
import json
import os
import re
import shlex
import sys
from datetime import datetime
from pathlib import Path

from s2flow.errors import UserError, print_error
from s2flow.store import gc as collect
from s2flow.store import index
from s2flow.store.listing import list_runs
from s2flow.store.merge import merge
from s2flow.store.verify import run_folders, verify

UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def arguments() -> argparse.ArgumentParser:
    """Everything that can be typed."""
    parser = argparse.ArgumentParser("python -m s2flow.store", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    of = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    ls = of.add_parser("ls", help="a line per run")
    ls.add_argument("--json", action="store_true", help="as JSON, bytes and seconds unrounded")
    check = of.add_parser("verify", help="what is wrong")
    gc = of.add_parser("gc", help="remove what verify finds, after asking")
    gc.add_argument("--yes", action="store_true", help="do not ask")
    gc.add_argument("--older-than", type=_seconds, default=3600.0, metavar="AGE", help="[1h]")
    for one in (check, gc):
        one.add_argument("--fast", action="store_true", help="sizes instead of hashes")
    join = of.add_parser("merge", help="bring another store's clips into this one")
    join.add_argument("other", type=Path, metavar="OTHER")
    join.add_argument("--into", type=Path, required=True, metavar="RUNS")
    out = of.add_parser("export", help="a row per clip as parquet or csv")
    out.add_argument("--to", type=Path, required=True, metavar="FILE")
    for one in (ls, check, gc, out):
        one.add_argument("runs", type=Path, nargs="?", default=Path("runs"), metavar="RUNS")
    return parser


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h|d)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; type 30s, 10min, 1h or 2d")
    return float(found[1]) * UNITS[found[2]]


def main(argv: list[str] | None = None) -> int:
    """The command line; see the module for the exit codes."""
    args = arguments().parse_args(argv)
    try:
        return {"ls": _ls, "verify": _verify, "gc": _gc, "merge": _merge, "export": _export}[
            args.command
        ](args)
    except UserError as error:
        print_error(error)
        return 2
    except BrokenPipeError:  # `... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        why = error.strerror or str(error)
        print(
            f"error: {args.command}:{_printable(where)} {why}; nothing is half written: free or "
            "open the place and type the same command again",
            file=sys.stderr,
        )
        return 1


def _runs(args: argparse.Namespace) -> list[Path]:
    found = run_folders(args.runs)
    if not found:
        raise UserError(f"{args.runs} holds no run; type the folder that run.py wrote its runs to")
    return found


def _ls(args: argparse.Namespace) -> int:
    _runs(args)
    found = list_runs(args.runs)
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    head = ("run", "clips", "failed", "twice", "size", "last made", "what")
    lines = [head, *(_line(r) for r in found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(line, widths, (False, *[True] * 4, False, False), strict=True)
        print("  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in cells).rstrip())
    clips, size = (sum(r[k] for r in found) for k in ("clips", "bytes"))
    print(f"{len(found)} runs, {clips} clips, {_size(size)}")
    return 0


def _line(run: dict) -> tuple[str, ...]:
    last = "—"
    if run["last"] is not None:
        try:
            last = datetime.fromtimestamp(run["last"]).strftime("%Y-%m-%d %H:%M")
        except (ValueError, OverflowError, OSError):  # a clock that was wrong by millennia
            last = f"{run['last']:g} s"
    counts = [str(run[k]) for k in ("clips", "failed", "duplicates")]
    return (run["id"], *counts, _size(run["bytes"]), last, _printable(run["label"]))


def _verify(args: argparse.Namespace) -> int:
    found, runs = 0, len(_runs(args))
    for finding in verify(args.runs, args.fast):
        found += 1
        print(_printable(f"{finding.path}: {finding.what}; {finding.then}"))
    how = "by size" if args.fast else "by hash"
    if found:
        print(
            f"{found} found in {runs} runs, compared {how}; type {_again(args, 'gc')} (it leaves alone "
            "what is younger than 1h, unless --older-than 0s says otherwise)"
        )
    else:
        print(f"{runs} runs are clean, compared {how}")
    return int(found > 0)


def _again(args: argparse.Namespace, command: str, *more: str) -> str:
    """What to type next, with what was typed before."""
    words = ["python", "-m", "s2flow.store", command, str(args.runs)]
    words += ["--fast"] if args.fast else []
    return _printable(shlex.join([*words, *more]))


def _gc(args: argparse.Namespace) -> int:
    _runs(args)
    found = list(verify(args.runs, args.fast))
    parted = collect.by_age(found, collect.clock(args.runs), args.older_than)
    for finding, why in parted.young:
        print(_printable(f"{finding.path}: {finding.what}; {why}: left alone"))
    if parted.young:
        again = _again(args, "gc", "--older-than", "0s")
        print(f"{len(parted.young)} left alone; if nobody is writing, type {again}")
    for finding in parted.old:
        print(_printable(f"{finding.path}: {finding.what}; {finding.then}"))
    if not parted.old:
        print("nothing to remove" + (" yet" if parted.young else ""))
        return int(bool(parted.young))
    files = sum(len(f.files) for f in parted.old)
    question = f"put {len(parted.old)} findings right, removing or mending {files} files?"
    if not args.yes and not _agreed(question, args):
        return 1
    left = 0
    for finding in parted.old:
        if (why := collect.clean(finding, args.runs)) is not None:
            left += 1
            print(_printable(f"{finding.path}: {why}: left alone"), file=sys.stderr)
    print(f"{len(parted.old) - left} of {len(parted.old)} put right")
    return int(left > 0 or bool(parted.young))


def _agreed(question: str, args: argparse.Namespace) -> bool:
    if not sys.stdin.isatty():
        print(
            f"error: {question} Nobody can answer here; nothing was removed: type "
            f"{_again(args, 'gc', '--older-than', f'{args.older_than:g}s', '--yes')}",
            file=sys.stderr,
        )
        return False
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        answer = ""
    return answer.strip().lower() in ("y", "yes")


def _merge(args: argparse.Namespace) -> int:
    n = merge(args.other, args.into)
    print(
        f"{n['runs']} runs: {n['copied']} clips copied, {n['both']} were in both, of which "
        f"{n['replaced']} gave way to a later one; {n['scores']} files of scores and "
        f"{n['failures']} failures copied; lr_cache stays behind"
    )
    if n["damaged"]:
        print(
            f"{n['damaged']} clips of {_printable(str(args.other))} are damaged and stay behind; "
            f"type python -m s2flow.store verify {_printable(str(args.other))}",
            file=sys.stderr,
        )
    return int(n["damaged"] > 0)


def _export(args: argparse.Namespace) -> int:
    if args.to.suffix not in (".parquet", ".csv"):
        raise UserError(f"--to {args.to} is neither; type a name that ends in .parquet or .csv")
    _runs(args)
    rows = index.export(args.runs, args.to)
    if not rows:
        raise UserError(f"{args.runs} holds no finished clip; python run.py makes one")
    print(f"{rows} clips in {_printable(str(args.to))}")
    return 0


def _size(n: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}" if unit != "B" else f"{n} B"
        n /= 1000
    return f"{n:.3g} TB"


def _printable(text: str) -> str:
    """On one line, whatever the name of a file holds."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


if __name__ == "__main__":
    sys.exit(main())
