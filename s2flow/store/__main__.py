"""`python -m s2flow.store`: what a store holds, whether it is intact, and what can be removed.

    python -m s2flow.store ls [RUNS] [--json]              a line per run
    python -m s2flow.store verify [RUNS] [--fast]          what is wrong, a line each, with the remedy
    python -m s2flow.store gc [RUNS] [--yes] [--older-than 1h]   apply the remedies, after asking
    python -m s2flow.store merge OTHER --into RUNS         copy another store's clips into this one
    python -m s2flow.store export [RUNS] --to FILE.parquet a row per clip; or FILE.csv
    python -m s2flow.store export RUN --vbench FOLDER      one run's clips as {prompt}-{index}.mp4

RUNS is the folder that run.py writes to [runs]. Exit code 0: done, nothing is wrong; 1: something is
wrong, remains, or could not be written; 2: the command cannot be carried out. `--fast` compares sizes
instead of hashes. `gc` leaves alone what is younger than --older-than (30s, 10min, 1h, 2d), since
another worker may be writing it. A run's next start also compares sizes; tables and export read only
records.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from s2flow.errors import UserError, print_error
from s2flow.store import gc as collect
from s2flow.store import index, rows
from s2flow.store.files import read_json, scan, written_whole
from s2flow.store.merge import merge
from s2flow.store.recipes import label
from s2flow.store.verify import FILES, OTHERS, Finding, run_folders, verify

UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def arguments() -> argparse.ArgumentParser:
    """Everything that can be typed."""
    parser = argparse.ArgumentParser("python -m s2flow.store", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    ls = commands.add_parser("ls", help="a line per run")
    ls.add_argument("--json", action="store_true", help="as JSON, bytes and seconds unrounded")
    check = commands.add_parser("verify", help="what is wrong")
    gc = commands.add_parser("gc", help="apply the remedies, after asking")
    gc.add_argument("--yes", action="store_true", help="do not ask")
    gc.add_argument("--older-than", type=_seconds, default=3600.0, metavar="AGE", help="[1h]")
    for one in (check, gc):
        one.add_argument("--fast", action="store_true", help="sizes instead of hashes")
    join = commands.add_parser("merge", help="copy another store's clips into this one")
    join.add_argument("other", type=Path, metavar="OTHER")
    join.add_argument("--into", type=Path, required=True, metavar="RUNS")
    out = commands.add_parser("export", help="a row per clip, or clips as VBench names them")
    form = out.add_mutually_exclusive_group(required=True)
    form.add_argument("--to", type=Path, metavar="FILE", help="a row per clip: parquet or csv")
    form.add_argument("--vbench", type=Path, metavar="FOLDER", help="clips of one run, RUNS/ID")
    for one in (ls, check, gc, out):
        one.add_argument("runs", type=Path, nargs="?", default=Path("runs"), metavar="RUNS")
    return parser


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h|d)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; type 30s, 10min, 1h or 2d")
    return float(match[1]) * UNITS[match[2]]


def main(argv: list[str] | None = None) -> int:
    """The command line; see the module for the exit codes."""
    args = arguments().parse_args(argv)
    commands = {"ls": _ls, "verify": _verify, "gc": _gc, "merge": _merge, "export": _export}
    try:
        return commands[args.command](args)
    except UserError as error:
        print_error(error)
        return 2
    except BrokenPipeError:  # of `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        why = error.strerror or str(error)
        print(
            f"error: {args.command}:{_printable(where)} {why}; nothing is half written: free space or "
            "permit writing there, and type the same command again",
            file=sys.stderr,
        )
        return 1


def _runs(args: argparse.Namespace) -> list[Path]:
    folders = run_folders(args.runs)
    if not folders:
        raise UserError(f"{args.runs} holds no run; type the folder that run.py wrote its runs to")
    return folders


def _ls(args: argparse.Namespace) -> int:
    runs = [_listed(folder) for folder in _runs(args)]
    if args.json:
        print(json.dumps(runs, indent=1))
        return 0
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("run", "clips", "failed", "twice", "size", "last made", "what"):
        right = name in ("clips", "failed", "twice", "size")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for run in runs:
        last = "—"
        if run["last"] is not None:
            try:
                last = datetime.fromtimestamp(run["last"]).strftime("%Y-%m-%d %H:%M")
            except (ValueError, OverflowError, OSError):  # a clock that was wrong by millennia
                last = f"{run['last']:g} s"
        counts = [str(run[k]) for k in ("clips", "failed", "duplicates")]
        line = (run["id"], *counts, _size(run["bytes"]), last, _printable(run["label"]))
        table.add_row(*map(escape, line))
    width = None if sys.stdout.isatty() else 400  # a file keeps every label in full
    Console(highlight=False, width=width).print(table)
    clips, size = (sum(r[k] for r in runs) for k in ("clips", "bytes"))
    print(f"{len(runs)} runs, {clips} clips, {_size(size)}")
    return 0


def _listed(folder: Path) -> dict[str, Any]:
    """A run of `ls`.

    clips: those whose record and video are complete; failed: failures of other clips; duplicates: how
    often a finished clip was made again; bytes: of its files, links as links; last: Unix time when the
    newest clip was made.
    """
    needed = {"_at", "_duplicates", "_video", "_bytes", "variant", "windows"}
    table = index.with_video(folder, index.read(folder, needed=needed.__contains__))
    made, doubled, stamps = (rows.values_of(table, n) for n in ("_at", "_duplicates", "_stamp"))
    written = (int(s.split()[0]) / 1e9 for s in stamps)  # the first records have no `at`
    finished, first = set(rows.values_of(table, "_file")), table.slice(0, 1)
    beside = {n: v for n in ("variant", "windows") for v in rows.values_of(first, n)}
    failed = (p.stem for p in folder.glob("failures/[!.]*.json"))
    size = 0
    for entry in (e for kind in (".", *FILES, *OTHERS) for e in scan(folder / kind)):
        with contextlib.suppress(OSError):
            if not entry.is_dir(follow_symlinks=False):
                size += entry.stat(follow_symlinks=False).st_size
    return {
        "id": folder.name,
        "label": label(read_json(folder / "recipe.json") or {}, **beside),
        "clips": table.num_rows,
        "failed": sum(key not in finished for key in failed),
        "duplicates": sum(filter(None, doubled)),
        "bytes": size,
        "last": max((m or w for m, w in zip(made, written, strict=True)), default=None),
    }


def _verify(args: argparse.Namespace) -> int:
    count, runs = 0, len(_runs(args))
    for count, finding in enumerate(verify(args.runs, args.fast), 1):  # noqa: B007
        _print_finding(finding, finding.remedy)
    how = "by size" if args.fast else "by hash"
    if count:
        print(
            f"{count} found in {runs} runs, compared {how}; type {_command(args, 'gc')} (it leaves "
            "alone what is younger than 1h, unless --older-than 0s is given)"
        )
    else:
        print(f"{runs} runs are clean, compared {how}")
    return int(count > 0)


def _print_finding(finding: Finding, then: str) -> None:
    print(_printable(f"{finding.path}: {finding.what}; {then}"))


def _command(args: argparse.Namespace, command: str, *more: str) -> str:
    """The command to type next, for the same store."""
    words = ["python", "-m", "s2flow.store", command, str(args.runs)]
    words += ["--fast"] if args.fast else []
    return _printable(shlex.join([*words, *more]))


def _gc(args: argparse.Namespace) -> int:
    _runs(args)
    found, now, old, young = list(verify(args.runs, args.fast)), collect.clock(args.runs), [], 0
    for finding in found:
        if why := collect.too_young(finding, now, args.older_than):
            _print_finding(finding, f"{why}: left alone")
            young += 1
        else:
            old.append(finding)
    if young:
        again = _command(args, "gc", "--older-than", "0s")
        print(f"{young} left alone; if nobody is writing, type {again}")
    for finding in old:
        _print_finding(finding, finding.remedy)
    if not old:
        print("nothing to remove" + (" yet" if young else ""))
        return int(young > 0)
    files = sum(state is not None for f in old for state in f.as_of.values())
    question = f"apply {len(old)} remedies, which remove or rewrite {files} files?"
    if not args.yes and not _agreed(question, args):
        return 1
    left = 0
    for finding in old:
        if (why := collect.clean(finding, args.runs)) is not None:
            left += 1
            print(_printable(f"{finding.path}: {why}: left alone"), file=sys.stderr)
    print(f"{len(old) - left} of {len(old)} remedies applied")
    return int(left > 0 or young > 0)


def _agreed(question: str, args: argparse.Namespace) -> bool:
    if not sys.stdin.isatty():
        print(
            f"error: {question} Nobody can answer here; nothing was removed: type "
            f"{_command(args, 'gc', '--older-than', f'{args.older_than:g}s', '--yes')}",
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
    if args.vbench is not None:
        return _export_vbench(args)
    if args.to.suffix not in (".parquet", ".csv"):
        raise UserError(f"--to {args.to} is neither; type a name that ends in .parquet or .csv")
    _runs(args)
    table = index.rows_below(args.runs)
    if not table.num_rows:
        raise UserError(f"{args.runs} holds no finished clip; python run.py makes one")
    with written_whole(args.to) as temporary:
        if args.to.suffix == ".csv":
            table.to_pandas().to_csv(temporary, index=False)
        else:
            pq.write_table(table, temporary)
    print(f"{table.num_rows} clips in {_printable(str(args.to))}")
    return 0


def _export_vbench(args: argparse.Namespace) -> int:
    run = args.runs if args.runs.exists() else Path("runs") / args.runs  # or its id alone
    from s2flow.store.foreign import export_vbench  # loads torch, which takes seconds

    count, left = export_vbench(run, args.vbench)
    for line in left:
        print(_printable(f"left out: {line}"), file=sys.stderr)
    print(
        f"{count} clips of run {run.name} in {_printable(str(args.vbench))}, {len(left)} left out"
    )
    return int(bool(left))


def _size(n: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}" if unit != "B" else f"{n} B"
        n /= 1000
    return f"{n:.3g} TB"


def _printable(text: str) -> str:
    """On one line, whatever characters a file name has."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


if __name__ == "__main__":
    sys.exit(main())
