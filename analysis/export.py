"""Run notebooks without a screen and keep them with their outputs.

    python analysis/export.py [NAME ...] [--runs RUNS] [--out OUT]

Every notebook of this folder, or those named, becomes OUT/NAME.ipynb; its figures lie beside it. One
that fails leaves the others going, is written as far as it came, and is named at the end with its
error; the exit status is then 1. A notebook is a .py file that begins with a py:percent cell.
"""

import argparse
import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient.exceptions import CellExecutionError
from nbconvert.preprocessors import ExecutePreprocessor

HERE = Path(__file__).resolve().parent
SECONDS = 1800  # of one cell, at most


def notebooks() -> dict[str, Path]:
    """The notebooks of this folder by name."""
    return {p.stem: p for p in sorted(HERE.glob("*.py")) if p.read_text().startswith("# %%")}


def export(path: Path, out: Path) -> str | None:
    """Execute one notebook and write out/NAME.ipynb; its error in one line, or None."""
    notebook = jupytext.read(path)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["kernelspec"] = kernel
    quiet = ["--log-level=ERROR"]
    runner = ExecutePreprocessor(timeout=SECONDS, kernel_name="python3", extra_arguments=quiet)
    try:
        runner.preprocess(notebook, {"metadata": {"path": str(HERE)}})
        return None
    except CellExecutionError as error:
        return f"{error.ename}: {error.evalue}".split("\n")[0]
    except Exception as error:  # a kernel that dies or hangs
        return f"{type(error).__name__}: {error}".split("\n")[0]
    finally:
        nbformat.write(notebook, out / f"{path.stem}.ipynb")


def main() -> int:
    """Export what was asked for."""
    found = notebooks()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(found))
    runs, out = os.environ.get("S2FLOW_RUNS"), os.environ.get("S2FLOW_OUT")
    parser.add_argument(
        "--runs", type=Path, default=Path(runs or HERE.parent / "runs"), help="the store to read"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(out or HERE / "out"), help="for all of it"
    )
    args = parser.parse_args()
    for name in args.names:
        if name not in found:
            parser.error(f"{name} is no notebook; there are {', '.join(found)}")
    if not args.runs.is_dir():
        parser.error(f"--runs {args.runs}: no such folder; make clips first, python run.py")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {args.out} cannot be made ({error.strerror}); type another folder")
    os.environ |= {"S2FLOW_RUNS": str(args.runs.resolve()), "S2FLOW_OUT": str(args.out.resolve())}
    failed = {}
    for name in args.names or found:
        error = export(found[name], args.out)
        print(f"{args.out / name}.ipynb" + (f" breaks off: {error}" if error else ""), flush=True)
        failed |= {name: error} if error else {}
    for name, error in failed.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
