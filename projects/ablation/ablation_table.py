"""The table and the plot of an ablation, from the records of its cells."""

import csv
import io
import itertools
import math
from pathlib import Path

import numpy as np
from ablation_plan import Cell
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import DictConfig

from lomar_det.figures import new_figure, save_figure

COLUMNS = (
    "cell",
    "metric",
    "mean",
    "std",
    "seeds",
    "values",
    "pretrain_seconds",
    "downstream_seconds",
    "pretrain_images",
    "budget",
    "x",
    "line",
)
_EXPLANATION = """\
Each row is one way to pretrain, and what it is worth downstream:

- {metrics}: at the end of the run downstream, mean ± standard deviation (n - 1) over the seeds;
  under "single" the value of each seed, in their order
- pretraining: its budget; epochs and images (repetitions included) that were trained
- s: seconds by the clock of one run, mean over the seeds
- a dash: there is none, or it could not be computed
"""
_COLOR, _FILL = "tab:blue", "lightsteelblue"
_LINES = (_COLOR, "tab:red", "tab:purple", "tab:brown", "tab:cyan", "tab:olive", "tab:pink")
_ACROSS = ("dimgrey", "tab:orange", "tab:green")  # lines across


def write_table(cells: list[Cell], records: list[dict], cfg: DictConfig, output: Path) -> None:
    """Writes ``table.md``, ``table.csv`` and ``plot.png``.

    Args:
        cells: In the order of the rows.
        records: Of the cells and seeds that are done, at least one.
        cfg: The ablation's config.
        output: The folder.
    """
    records = sorted(records, key=lambda record: record["seed"])
    rows = [
        row
        for cell in cells
        for row in _rows(cell, [record for record in records if record["cell"] == cell.name])
    ]
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        values = " ".join(f"{value:.2f}" for value in row["values"])
        writer.writerow(row | {"values": values, "seeds": len(row["seeds"])})
    (output / "table.csv").write_text(table.getvalue(), "utf-8")
    (output / "table.md").write_text(_markdown(rows, records, cfg.run.title), "utf-8")
    save_figure(_plot(rows, cfg.run), output / "plot.png")


def format_number(value: float | None, digits: int = 2) -> str:
    """None, what does not exist or could not be computed, is a dash."""
    return "-" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def _rows(cell: Cell, records: list[dict]) -> list[dict]:
    """One for each metric: means over seeds, None where there is none (a spread of one seed)."""
    pretrained = [record["pretrain"] for record in records if record["pretrain"]]
    measured = [cell.measured(record) for record in records]
    costs = {
        "budget": cell.budget,
        "pretrain_epochs": _mean([run["settings"]["train"]["epochs"] for run in pretrained]),
        "pretrain_seconds": _mean([run["seconds"] for run in pretrained]),
        "pretrain_images": pretrained[0]["images"] if pretrained else None,
        "downstream_seconds": _mean([record["downstream"]["seconds"] for record in records]),
    }
    rows = []
    for metric in cell.metrics:
        values = [math.nan if by[metric] is None else by[metric] for by in measured]
        row = {"cell": cell.name, "x": cell.x, "line": cell.line}
        row |= {"metric": metric, "values": values}
        row |= {"mean": _mean(values), "std": _std(values), "seeds": [r["seed"] for r in records]}
        rows.append(row | costs)
    return rows


def _mean(values: list[float]) -> float | None:
    return _round(np.mean(values)) if values else None


def _std(values: list[float]) -> float | None:
    return _round(np.std(values, ddof=1)) if len(values) > 1 else None


def _round(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 2)


def _metrics(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(row["metric"] for row in rows))


def _markdown(rows: list[dict], records: list[dict], title: str) -> str:
    """A line for each cell, a column for each metric."""
    metrics = _metrics(rows)
    costs = {
        "pretraining, epochs": ("pretrain_epochs", 1),
        "pretraining, images": ("pretrain_images", 0),
        "pretraining, s": ("pretrain_seconds", 0),
        "downstream, s": ("downstream_seconds", 0),
    }
    header = ["cell", *metrics, "seeds", "pretraining", *costs]
    header += [f"{metric}, single" for metric in metrics]
    lines = [
        f"# {title}",
        "",
        _EXPLANATION.format(metrics=", ".join(metrics)),
        _line(header),
        _line(["---"] * len(header)),
    ]
    for name in dict.fromkeys(row["cell"] for row in rows):
        by_metric = {row["metric"]: row for row in rows if row["cell"] == name}
        row, *_ = by_metric.values()
        columns = [name, *(_mean_and_std(by_metric.get(metric)) for metric in metrics)]
        columns += [" ".join(map(str, row["seeds"])) or "-", row["budget"] or "-"]
        columns += [format_number(row[cost], digits) for cost, digits in costs.values()]
        singles = [by_metric.get(metric, {"values": []})["values"] for metric in metrics]
        columns += [" ".join(map(format_number, values)) or "-" for values in singles]
        lines.append(_line(columns))
    results = (record["downstream"].get("results", {}) for record in records)
    counts = {result.get("classification", {}).get("images") for result in results} - {None}
    if len(counts) > 1:  # some images could not be read, in some runs
        numbers = " or ".join(f"{count:g}" for count in sorted(counts))
        lines += ["", f"Not all measured on the same images, but on {numbers} of them."]
    machines = sorted({f"{r['machine']}, lomar_det {r['lomar_det']}" for r in records})
    dates = [record["date"] for record in records]
    lines += ["", f"{'; '.join(machines)}. {' to '.join(sorted({min(dates), max(dates)}))}."]
    return "\n".join(lines) + "\n"


def _line(columns: list[str]) -> str:
    return f"| {' | '.join(columns)} |"


def _mean_and_std(row: dict | None) -> str:
    if row is None or row["std"] is None:
        return format_number(row and row["mean"])
    return f"{format_number(row['mean'])} ± {format_number(row['std'])}"


def _plot(rows: list[dict], settings: DictConfig) -> Figure:
    """A panel for each metric; see `_draw_bars` and `_draw_lines`."""
    metrics, drawn = _metrics(rows), [row for row in rows if row["mean"] is not None]
    names = list(dict.fromkeys(row["cell"] for row in drawn))
    if settings.x_label:
        size, note = (5.5 * len(metrics), 4.3), "lines"
    else:
        size, note = (2 + 4 * len(metrics), 1.5 + 0.5 * len(names)), "bars"
    figure = new_figure(size)
    axes = figure.subplots(1, len(metrics), squeeze=False, sharey=not settings.x_label)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        of_metric = [row for row in drawn if row["metric"] == metric]
        if settings.x_label:
            lines = dict.fromkeys(row["line"] for row in rows if row["x"] is not None)
            _draw_lines(axis, of_metric, dict(zip(lines, itertools.cycle(_LINES), strict=False)))
            axis.set_xlabel(settings.x_label, parse_math=False)
            axis.set_ylabel(metric, parse_math=False)
        else:
            _draw_bars(axis, of_metric, names)
            axis.set_xlabel(metric, parse_math=False)
        axis.set_axisbelow(True)
    figure.suptitle(settings.title, fontsize=11, parse_math=False)
    figure.supxlabel(f"{note}: mean, with standard deviation; dots: single seeds", fontsize=8)
    return figure


def _draw_bars(axis: Axes, rows: list[dict], names: list[str]) -> None:
    """Means as bars from zero, the numbers beside them."""
    ends = [max([row["mean"] + (row["std"] or 0), *row["values"]]) for row in rows]
    for row, end in zip(rows, ends, strict=True):
        place = names.index(row["cell"])
        axis.barh(place, row["mean"], height=0.7, color=_FILL)
        if row["std"] is not None:
            axis.errorbar(row["mean"], place, xerr=row["std"], color=_COLOR, capsize=5)
        beside = np.linspace(-0.3, 0.3, len(row["values"]) + 2)[1:-1]  # not on each other
        axis.plot(row["values"], place + beside, "k.", markersize=5)
        offset = {"xytext": (6, 0), "textcoords": "offset points"}
        axis.annotate(_mean_and_std(row), (end, place), **offset, va="center", fontsize=9)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)  # the first on top, as in the table
    axis.set_xlim(0, 1.5 * max(ends, default=0) or 1)  # with room for the numbers
    axis.grid(axis="x", alpha=0.3)


def _draw_lines(axis: Axes, rows: list[dict], colors: dict[str | None, str]) -> None:
    """Means over the places of the cells; a cell without a place is a dashed line across."""
    placed = sorted((row for row in rows if row["x"] is not None), key=lambda row: row["x"])
    across = [row for row in rows if row["x"] is None]
    places = sorted({row["x"] for row in placed})
    for line, color in colors.items():
        points = [row for row in placed if row["line"] == line]
        if not points:  # none of this metric
            continue
        xs, means = [row["x"] for row in points], [row["mean"] for row in points]
        spread = [row["std"] or 0 for row in points]
        axis.errorbar(xs, means, spread, marker="s", color=color, capsize=5, label=line)
        for row in points:
            dots = row["values"]
            axis.plot([row["x"]] * len(dots), dots, ".", color=color, mec="k", zorder=3)
    for row, color in zip(across, itertools.cycle(_ACROSS), strict=False):
        mean, std = row["mean"], row["std"] or 0
        axis.axhline(
            mean, color=color, linestyle="--", label=f"{row['cell']}: {_mean_and_std(row)}"
        )
        axis.axhspan(mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
        edge = axis.get_yaxis_transform()  # its dots, at the right edge
        axis.plot([0.99] * len(row["values"]), row["values"], ".", color=color, transform=edge)
    if axis.get_legend_handles_labels()[0]:
        for text in axis.legend(fontsize=9).get_texts():
            text.set_parse_math(False)
    if places and min(places) > 0 and max(places) >= 10 * min(places):
        axis.set_xscale("log")
    axis.set_xticks(places, [f"{place:g}" for place in places])
    axis.set_xticks([], minor=True)
    axis.margins(x=0.08)
    axis.grid(alpha=0.3)
