"""Figures of a run: what the model reconstructs (the paper's Figures 2 and 3), and its curves."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lomar_det.errors import UserError

from ..models.lomar import LoMaR
from ..models.mae import MAE
from .reconstruction import Reconstruction, reconstruct

NORMALISED_NOTE = (
    "The model predicts pixels normalised per patch. They are drawn with the TRUE mean and "
    "variance of each patch:\nbrightness and contrast are given away, only the structure within "
    "a patch is predicted."
)
RAW_NOTE = "The model predicts plain pixels; they are drawn as predicted, nothing is given away."
FIRST, OTHER = "red", "gold"  # outlines of windows


def reconstruction_figure(
    model: LoMaR | MAE,
    images: list[tuple[str, Tensor]],
    num_windows: int | None = None,
    seed: int = 0,
    title: str = "",
) -> Figure:
    """One row of panels for each image.

    LoMaR: original with its windows, then the first of them (red), masked and reconstructed, then
    all windows in place, masked and reconstructed. MAE: original, masked, reconstructed,
    reconstructed + visible.

    Args:
        model: On any device.
        images: (name, normalised image (3, height, width)), see `reconstruction.fit_to_model`.
        num_windows: Windows on each image; the model's own number if None.
        seed: Image number i is masked with seed + i.
        title: Heading of the figure.
    """
    rows = [
        (name, reconstruct(model, image, num_windows, seed + number))
        for number, (name, image) in enumerate(images)
    ]
    draw = _lomar_panels if isinstance(model, LoMaR) else _mae_panels
    panels = [draw(result) for _, result in rows]
    titles = list(panels[0])
    widths = [max(_aspect(row[title]) for row in panels) for title in titles]
    size = 2 * sum(widths) + 0.4, 2 * len(rows) + 1
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False, width_ratios=widths)
    for number, ((name, result), row) in enumerate(zip(rows, panels, strict=True)):
        for axis, (panel_title, image) in zip(axes[number], row.items(), strict=True):
            axis.imshow(image.permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
            if number == 0:
                axis.set_title(panel_title, fontsize=9)
        axes[number, 0].set_ylabel(_shorten(name), fontsize=7, parse_math=False)
        _outline(axes[number, 0], result.boxes)
    note = NORMALISED_NOTE if model.norm_pix_loss else RAW_NOTE
    figure.supxlabel(note, fontsize=8)
    figure.suptitle(_headline(model, title), fontsize=10, parse_math=False)
    return figure


def _lomar_panels(result: Reconstruction) -> dict[str, Tensor]:
    x, y, width, height = result.boxes[0].tolist()

    def crop(image: Tensor) -> Tensor:
        return image[:, y : y + height, x : x + width]

    panels = {
        "original": result.original,
        "window": crop(result.original),
        "masked": crop(result.masked),
        "reconstructed": crop(result.filled),
    }
    if len(result.boxes) > 1:
        panels |= {
            f"{len(result.boxes)} windows,\nmasked": result.masked,
            f"{len(result.boxes)} windows,\nreconstructed": result.filled,
        }
    return panels


def _mae_panels(result: Reconstruction) -> dict[str, Tensor]:
    return {
        "original": result.original,
        "masked": result.masked,
        "reconstructed": result.predicted,
        "reconstructed + visible": result.filled,
    }


def _outline(axis, boxes: Tensor) -> None:
    """Draws the first window last, so that it lies on top, as in the images."""
    for number, (x, y, width, height) in reversed(list(enumerate(boxes.tolist()))):
        color = OTHER if number else FIRST
        # pixel centres are whole numbers, so that the image begins half a pixel before 0
        corner = x - 0.5, y - 0.5
        axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=color, lw=1.5))


def _headline(model: LoMaR | MAE, title: str) -> str:
    if isinstance(model, LoMaR):
        count = model.window_size**2
        masked = f"LoMaR: {int(count * model.mask_ratio)} of {count} patches of a window masked"
    else:
        count = model.grid[0] * model.grid[1]
        masked = f"MAE: {count - int(count * (1 - model.mask_ratio))} of {count} patches masked"
    return f"{_shorten(title, 80)} ({masked})" if title else masked


def _aspect(image: Tensor) -> float:
    return max(image.shape[2] / image.shape[1], 0.6)  # room for the title


def _shorten(name: str, length: int = 28) -> str:
    name = name.encode(errors="replace").decode()  # fonts know no bytes that are not UTF-8
    return name if len(name) <= length else "..." + name[3 - length :]


def plot_training(metrics: list[dict], output: str | Path) -> Path:
    """Draws what a run measured over its iterations: loss, learning rate, speed, kNN accuracy.

    Args:
        metrics: Lines of a ``metrics.json``. A quantity that none of them has gets no panel.
        output: The PNG to write, in a folder that is there.
    """
    panels = {
        "loss": {"total_loss": "loss", "loss_constant": "of a constant"},
        "learning rate": {"lr": "learning rate"},
        "images / s": {"img_per_s": "images / s"},
        "kNN top-1 accuracy, %": {
            "knn_top1": "this model",
            "knn_top1_random_init": "random initialisation",
            "knn_chance": "always the largest class",
        },
    }
    curves = {
        title: {
            label: [(m["iteration"], m[key]) for m in metrics if m.get(key) is not None]
            for key, label in keys.items()
        }
        for title, keys in panels.items()
    }
    curves = {title: lines for title, lines in curves.items() if any(lines.values())}
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(5 * columns, 3 * rows), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(curves) :]:
        axis.set_axis_off()
    for axis, (title, lines) in zip(axes, curves.items(), strict=False):
        for (label, points), style in zip(lines.items(), ("-", "--", ":"), strict=False):
            marker = "." if len(points) < 30 else ""
            axis.plot(*np.array(points or [(np.nan, np.nan)]).T, style, marker=marker, label=label)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("iteration")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axis.ticklabel_format(axis="y", scilimits=(-3, 4))
        axis.grid(alpha=0.3)
        if "img_per_s" in panels[title]:
            axis.set_ylim(bottom=0)  # else a steady speed looks like noise
        if len(lines) > 1:
            axis.legend(fontsize=8)
    figure.savefig(output)
    return Path(output)


def figure_to_array(figure: Figure) -> np.ndarray:
    """The drawn figure as (3, height, width) uint8, for TensorBoard."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].transpose(2, 0, 1).copy()


def check_format(option: str, output: Path) -> None:
    """Refuses a file that matplotlib cannot write, before any work is done for it.

    Args:
        option: The option of the command line that names the file, for the message.
        output: The file.

    Raises:
        UserError: matplotlib does not know the format.
    """
    if output.suffix[1:].lower() not in Figure().canvas.get_supported_filetypes():
        raise UserError(
            f"{option} {output}: {output.suffix or 'no ending'} is no format for images; use .png"
        )
