"""Figures of matplotlib, made and written without a display."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .errors import UserError

DPI = 120


def new_figure(size: tuple[float, float]) -> Figure:
    """A figure that pyplot does not know: no display, nothing kept after the run."""
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_format(option: str, output: Path) -> None:
    """Refuses a file that `save_figure` cannot write, before anything is done for it.

    Args:
        option: Of the command line, for the message.
        output: The file.

    Raises:
        UserError: a format that matplotlib does not know.
    """
    if output.suffix[1:].lower() not in Figure().canvas.get_supported_filetypes():
        raise UserError(
            f"{option} {output}: {output.suffix or 'no ending'} is no format for images; use .png"
        )


def save_figure(figure: Figure, output: str | Path) -> Path:
    """Writes a figure in the format of the file's name, folders included."""
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    return Path(output)
