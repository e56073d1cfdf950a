"""Figures of matplotlib, made and written without a display."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 120


def new_figure(size: tuple[float, float]) -> Figure:
    """A figure that pyplot does not know: no display, nothing kept after the run."""
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, output: str | Path) -> Path:
    """Writes a figure in the format of the file's name, folders included."""
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    return Path(output)
