"""`python -m s2flow.report`: see the package."""

import argparse
import sys
from pathlib import Path

from s2flow.errors import UserError, print_error
from s2flow.report import __doc__ as what
from s2flow.report import write_report


def main(argv: list[str] | None = None) -> None:
    """The command line; exits with 2 and one line if there is nothing to show."""
    parser = argparse.ArgumentParser("python -m s2flow.report", description=what)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("runs", type=Path, help="the folder that run.py wrote its runs to")
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        metavar="PAGE",
        help="a folder, or a file *.html; RUNS/report.html if not set",
    )
    parser.add_argument("--embed", action="store_true", help="put the videos into the page")
    args = parser.parse_args(argv)
    try:
        print(write_report(args.runs, args.output, args.embed))
    except UserError as error:
        print_error(error)
        sys.exit(2)


if __name__ == "__main__":
    main()
