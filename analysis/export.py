"""Run notebooks without a screen and keep them with their outputs.

    python analysis/export.py [NAME ...] [--runs RUNS] [--out OUT]

Every notebook of this folder, or those named, becomes OUT/NAME.ipynb; its figures lie beside it. One
that fails leaves the others going, is written as far as it came, and is named at the end with its
error; the exit status is then 1. A notebook is a .py file that begins with a py:percent cell.
"""

import os
import sys
from pathlib import Path

try:
    import jupytext
    import nbformat
    from nbclient.exceptions import CellExecutionError
    from nbconvert.preprocessors import ExecutePreprocessor
except ModuleNotFoundError as missing:
    sys.exit(f'error: notebooks need {missing.name}; type pip install -e ".[analysis]"')
from style import check_folders, parser_of

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
    known = notebooks()
    parser = parser_of(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    args = parser.parse_args()
    for name in args.names:
        if name not in known:
            parser.error(f"{name} is no notebook; there are {', '.join(known)}")
    check_folders(parser, args)
    os.environ |= {"S2FLOW_RUNS": str(args.runs.resolve()), "S2FLOW_OUT": str(args.out.resolve())}
    failed = {}
    for name in args.names or known:
        error = export(known[name], args.out)
        print(f"{args.out / name}.ipynb" + (f" breaks off: {error}" if error else ""), flush=True)
        failed |= {name: error} if error else {}
    for name, error in failed.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
