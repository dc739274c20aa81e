"""How a figure looks: width, type, colours for the colour-blind (Okabe and Ito's), PNG and PDF."""

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

COLUMN, PAGE = 3.4, 7.0  # inches
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PINK, GREY = "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#8C8C8C"
LOOK = {
    **{"font.size": 7, "axes.titlesize": 7, "axes.linewidth": 0.6, "axes.titlelocation": "left"},
    **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
    **{"lines.linewidth": 1, "lines.markersize": 3.5, "grid.linewidth": 0.3},
    **{"grid.color": "#DDDDDD", "pdf.fonttype": 42, "figure.dpi": 110, "savefig.dpi": 220},
    **{"axes.axisbelow": True, "hatch.linewidth": 0.4},
}
plt.rcParams.update(LOOK)


def write(figure: Figure, path: Path, dpi: float | None = None) -> None:
    """Write path.pdf and path.png, and close the figure."""
    for end in ("pdf", "png"):
        figure.savefig(
            f"{path}.{end}", bbox_inches="tight", dpi=dpi or plt.rcParams["savefig.dpi"]
        )
    plt.close(figure)


def plain_numbers(ax: Axes, axis: str, ticks: list[float] | None = None) -> None:
    """Numbers instead of powers of ten on a logarithmic axis."""
    line = ax.xaxis if axis == "x" else ax.yaxis
    if ticks is not None:
        line.set_ticks(ticks)
        line.set_minor_locator(NullLocator())
    line.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    line.set_minor_formatter(NullFormatter())
