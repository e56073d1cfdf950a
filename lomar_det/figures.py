"""Writing a figure of matplotlib."""

from pathlib import Path

from matplotlib.figure import Figure


def save_figure(figure: Figure, output: str | Path) -> Path:
    """Writes a figure in the format of the file's name, folders included."""
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    return Path(output)
