"""What all notebooks share: where runs are read and figures written, and parts of figures.

A notebook is a py:percent file. It opens in Jupyter (jupytext) and runs as a script:

    python analysis/runtime.py [--runs runs] [--out analysis/out]

In Jupyter the defaults hold, or S2FLOW_RUNS and S2FLOW_OUT of its environment. The look of figures is
that of experiments/figures.py: one or two columns wide, 7 point text, PDF and PNG.
"""

import argparse
import os
import sys
import textwrap
import warnings
from pathlib import Path

try:
    import matplotlib
except ModuleNotFoundError:
    sys.exit('error: figures need matplotlib; type pip install -e ".[analysis]"')
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "experiments"))

shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
IN_JUPYTER = getattr(shell, "kernel", None) is not None
if IN_JUPYTER:
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's, of no use here
else:
    matplotlib.use("Agg")

from figures import *  # noqa: E402, F403  the look, for notebooks
from figures import BLUE, GREY, write  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """The options --runs and --out."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=form)
    runs = Path(os.environ.get("S2FLOW_RUNS", ROOT / "runs"))
    out = Path(os.environ.get("S2FLOW_OUT", ROOT / "analysis" / "out"))
    parser.add_argument("--runs", type=Path, default=runs, help="the store to read")
    parser.add_argument("--out", type=Path, default=out, help="for what is written")
    return parser


def folders(doc: str | None) -> tuple[Path, Path]:
    """(runs, out) from the command line, the environment or their defaults; `out` is made."""
    parser = parser_of(doc)
    args = parser.parse_args([] if IN_JUPYTER else sys.argv[1:])
    return check_folders(parser, args)


def check_folders(parser: argparse.ArgumentParser, args: argparse.Namespace) -> tuple[Path, Path]:
    """Make `out`; ends with one line if that or reading `runs` cannot be."""
    if not args.runs.is_dir():
        parser.error(f"--runs {args.runs}: no such folder; make clips first, python run.py")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {args.out} cannot be made ({error.strerror}); type another folder")
    return args.runs, args.out


def intervals(ax: Axes, rows: list[tuple], solid: list[bool] | None = None) -> None:
    """One row per (mean, low, high), the first on top: a dot, and a line where there are ends.

    solid: rows that are blue with a full dot; the others are grey with an open one.
    """
    for y, (mean, low, high) in enumerate(rows):
        full = solid is None or solid[y]
        colour = BLUE if full else GREY
        if low is not None:
            ax.plot([low, high], [y, y], color=colour, solid_capstyle="butt", lw=1.2)
        if mean is not None:
            ax.plot(mean, y, "o", color=colour, mfc=colour if full else "white")
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(True, axis="x")


def spread(n: int, most: int) -> np.ndarray:
    """All of range(n), or if they are too many, `most` of them at even distances."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def headed(figure: Figure, record: dict, more: str = "") -> None:
    """A line above a figure of one clip: its backbone, run and prompt."""
    from notes import EMBEDDED  # slow

    name = record["recipe"]["backbone"]
    toy = " (embedded toy model)" if name in EMBEDDED else ""
    prompt = textwrap.shorten(record["prompt"], 72, placeholder="…")
    text = f"{name}{toy}, run {record['run_id']}, “{prompt}”{more}"
    text = textwrap.fill(text.replace("$", r"\$"), int(figure.get_figwidth() * 20))
    figure.suptitle(text, fontsize=6, color="#555555", x=0.01, ha="left")


def save(figure: Figure, path: Path, dpi: float | None = None) -> None:
    """Write path.pdf and path.png, print that, and show the picture where there is a notebook.

    dpi: where pixels of a video must be whole numbers of dots.
    """
    write(figure, path, dpi)
    print(f"wrote {path}.pdf and .png")
    if IN_JUPYTER:  # the file itself, so that no backend of matplotlib's matters
        from IPython.display import Image, display

        display(Image(f"{path}.png", width=int(figure.get_figwidth() * 160)))


def show(text: str, page: str = "") -> None:
    """Markdown, or a page of HTML, in Jupyter; the text elsewhere.

    Of a page only the body is shown, so that it styles nothing around it.
    """
    if not IN_JUPYTER:
        print(text)
        return
    from IPython.display import HTML, Markdown, display

    head, _, body = page.rpartition("</style>")
    style, body = head.partition("<style>")[2], body.replace("</html>", "")
    rich = HTML(f'<style>.s2flow {{{style}}}</style><div class="s2flow">{body}</div>')
    display(rich if page else Markdown(text))
