"""What a benchmark measured, as bars."""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .breakdown import PARTS

# what a bar shows: the first of these that a row has
VALUES = {
    "graph_both": "ms, forward + backward, as a CUDA graph",
    "both": "ms, forward + backward",
    "ms": "ms",
    "img/s": "images a second",
}


def plot_result(result: dict, output: str | Path) -> Path:
    """Draws a benchmark's rows: a panel for each case with a bar for each model or backend.

    Times have their quartiles as a whisker. Where the result knows ``parts``, a second panel beside
    each stacks them, as the profiler measured them.

    Args:
        result: What a benchmark returns, or its JSON.
        output: The image to write, in a folder that is there.
    """
    rows = [row for row in result["rows"] if any(row.get(key) is not None for key in VALUES)]
    contestant = next((key for key in ("model", "backend") if key in rows[0]), None)
    # without contestants the cases themselves are compared, in a single panel
    panels: dict[str, list[dict]] = {}
    for row in rows:
        panels.setdefault(row["case"] if contestant else "", []).append(row)
    parts = result.get("parts")
    sizes = [len(bars) for bars in panels.values()]
    height = 0.6 + sum(0.9 + 0.35 * size for size in sizes)
    figure = Figure(figsize=(14 if parts else 8, height), dpi=120, layout="constrained")
    axes = figure.subplots(
        len(panels), 2 if parts else 1, squeeze=False, height_ratios=[2 + size for size in sizes]
    )
    for (case, bars), line in zip(panels.items(), axes, strict=True):
        _draw_bars(line[0], bars, contestant or "case")
        line[0].set_title(case, fontsize=10)
        if parts:
            _draw_parts(line[1], [part for part in parts if part["case"] == case])
    if parts:
        _add_legend(figure, parts)
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    figure.suptitle(machine, fontsize=9)
    figure.savefig(output)
    return Path(output)


def _draw_bars(axis: Axes, rows: list[dict], label: str) -> None:
    key = next(key for key in VALUES if rows[0].get(key) is not None)
    values = [row.get(key) or row["both"] for row in rows]
    titles = [row[label] + (f", batch {row['batch']}" if "batch" in row else "") for row in rows]
    # a backend that cannot be captured as a graph shows its eager time, which is longer
    titles = [t if row.get(key) else f"{t}, no graph" for t, row in zip(titles, rows, strict=True)]
    bars = axis.barh(titles, values, color="lightskyblue")
    for row, value, bar in zip(rows, values, bars, strict=True):
        middle = bar.get_y() + bar.get_height() / 2
        text = f" {value:,.0f}" if value >= 100 else f" {value:.3g}"
        axis.text(0, middle, text, va="center", fontsize=8)
        if key in ("ms", "both"):
            axis.plot(row["spread"], [middle, middle], color="black")
    axis.invert_yaxis()  # the first on top, as in the table
    axis.set_xlabel(VALUES[key], fontsize=8)


def _draw_parts(axis: Axes, parts: list[dict]) -> None:
    """One bar for each model; of each part first the forward pass, then, hatched, the backward."""
    ends: dict[str, float] = dict.fromkeys((part["model"] for part in parts), 0.0)
    colors = _colors(parts)
    for part in parts:
        for direction, hatch in (("forward", None), ("backward", "////")):
            axis.barh(
                part["model"],
                part[direction],
                left=ends[part["model"]],
                color=colors[part["part"]],
                edgecolor="white",
                linewidth=0.3,
                hatch=hatch,
            )
            ends[part["model"]] += part[direction]
    axis.invert_yaxis()
    axis.set_xlabel("ms by part, of the profiler; hatched: backward", fontsize=8)


def _add_legend(figure: Figure, parts: list[dict]) -> None:
    patches = [Patch(color=color, label=part) for part, color in _colors(parts).items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=5, fontsize=8)


def _colors(parts: list[dict]) -> dict[str, tuple]:
    """The same part has the same colour in every panel."""
    palette = matplotlib.colormaps["tab20"].colors
    known = {part["part"] for part in parts}
    return {part: palette[i] for i, part in enumerate(PARTS) if part in known}
