"""Tables 1-4: ours beside the paper's, from the records under `runs/`.

    python experiments/tables.py table2 [--runs runs] [--format text|md|tex|csv|html] [--reference RUN]

Only comparable clips share a table: one backbone, step count and video size, and every knob that the
table does not vary held at one value, which a note names: the combination with the most finished
clips among those that give at least two rows. What that leaves out is counted in a note.

Our columns stand left, `VBench ...` or `own ...`; Temporal, Visual and Mean stay empty until all
their dimensions exist. The paper's stand right: compare how the rows differ, not the levels. A score
marked `*` differs from the reference row's (`--reference`, else the paper's setting, else the first
with clips): the interval of the paired difference leaves out 0, and six prompts or more differ.
`clips` is n of N: `--of` prompts, else the paper's 473 for a real backbone, or all that any row has.
What is missing is printed to stderr with the command that makes it; `--strict` then ends with 1.
"""

import argparse
import shlex
import sys
from pathlib import Path

from rows import TABLES, make_tables
from sheet import FORMATS, Table


def main(argv: list[str] | None = None) -> int:
    """Print one table; 1 if there is nothing to print yet, or with --strict not all of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the store (runs)")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--reference", help="run id of the row that others are compared with")
    parser.add_argument("--of", type=int, help="prompts that were asked for")
    parser.add_argument("--strict", action="store_true", help="end with 1 if clips are missing")
    args = parser.parse_args(argv)
    if args.of is not None and args.of < 1:
        parser.error(f"--of {args.of} asks for no prompt; type --of 473")
    where = "" if args.runs == Path("runs") else f" runs_dir={shlex.quote(str(args.runs))}"
    try:
        tables = _read(args, where)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(FORMATS[args.format](tables), end="")
    lacking = [table for table in tables if table.missing]
    for table in lacking:
        print(
            f"missing in {table.title.partition(':')[0]} of {table.group['backbone']}: "
            f"{', '.join(table.missing)}; make them with: {table.command}{where}",
            file=sys.stderr,
        )
    return int(args.strict and bool(lacking))


def _read(args: argparse.Namespace, where: str) -> list[Table]:
    """The tables asked for. Raises ValueError, in one line, if there is none."""
    tables, exists = [], args.runs.is_dir()
    if (args.runs / "records").is_dir():
        raise ValueError(f"--runs {args.runs} is one run; type the folder that holds it")
    if exists:
        from s2flow.store import load_records  # heavy, and not needed for --help

        try:
            frame = load_records(args.runs)
            tables = make_tables(args.table, frame, args.reference, args.of)
        except ValueError as error:  # a score on another scale, or a store that cannot be read
            raise ValueError(f"{args.table}: {error}") from error
    if not tables:
        absent = "" if exists else ", which does not exist"
        raise ValueError(
            f"no finished clips for {args.table} in {args.runs}/{absent}; make them with: "
            f"python run.py experiment={args.table}{where}"
        )
    runs = [row["run"] for table in tables for row in table.rows if row["run"]]
    if args.reference is not None and args.reference not in runs:
        known = ", ".join(runs)
        raise ValueError(
            f"--reference {args.reference} is no row of {args.table}; type one of {known}"
        )
    return tables


if __name__ == "__main__":
    sys.exit(main())
