"""Writes the table and the plot of an ablation."""

import csv
import math
from pathlib import Path

import numpy as np
from cells import Cell
from detectron2.utils import comm
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import DictConfig

from lomar_det.errors import UserError

Results = dict[str, dict[int, dict]]  # of the runs downstream, by cell and seed

_TEXT = """\
# {title}

- at the end of the run downstream: mean ± standard deviation over the seeds
- minus {first}: the difference to that cell, seed by seed: mean ± standard error
- images, s: of one pretraining, images with repetitions, seconds of its training steps

{table}

{origin}
"""


def write_table(cells: list[Cell], results: Results, cfg: DictConfig) -> None:
    """Writes ``table.md``, ``table.csv`` and ``plot.png`` of what is done, if anything is.

    Args:
        cells: In the order of the rows; the others are compared with the first.
        results: Of the runs downstream, by cell and seed.
        cfg: The ablation's config.

    Raises:
        UserError: a run has no such metric.
    """
    metric = cfg.downstream.metric
    metrics = [metric] if isinstance(metric, str) else list(metric)
    rows = [_make_row(cell, cells[0], results, metrics) for cell in cells if results[cell.name]]
    if not rows or not comm.is_main_process():
        return
    output = Path(cfg.run.output_dir).expanduser()
    with (output / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    runs = [run for by_seed in results.values() for run in by_seed.values()]
    origin = "\n".join(sorted({f"{run['machine']}, {run['date']}." for run in runs}))
    table, first = _markdown(rows, metrics, cells[0].name), cells[0].name
    text = _TEXT.format(title=cfg.run.title, first=first, table=table, origin=origin)
    (output / "table.md").write_text(text, "utf-8")
    draw_plot(rows, metrics, cfg.run).savefig(output / "plot.png")


def _make_row(cell: Cell, first: Cell, results: Results, metrics: list[str]) -> dict:
    """A row of the CSV file; nan stands for what does not exist."""
    pretrainings = [result["pretraining"] for result in results[cell.name].values()]
    row = {"cell": cell.name, "seeds": len(pretrainings), "budget": cell.budget}
    for cost in ("images", "seconds"):
        row[cost], _ = _mean_and_std([run[cost] for run in pretrainings if run])
    row |= {"x": cell.x, "line": cell.line}
    for metric in metrics:
        values, others = _values(cell, results, metric), _values(first, results, metric)
        shared = [seed for seed in values if seed in others and cell != first]
        mean, std = _mean_and_std(list(values.values()))
        gain, spread = _mean_and_std([values[seed] - others[seed] for seed in shared])
        row |= {metric: mean, f"{metric} std": std, f"{metric} minus first": gain}
        row[f"{metric} minus first, error"] = round(spread / max(len(shared), 1) ** 0.5, 3)
        row[f"{metric} values"] = list(values.values())
    return row


def _values(cell: Cell, results: Results, metric: str) -> dict[int, float]:
    """A metric by seed; nan where it could not be computed."""
    values = {}
    for seed, result in sorted(results[cell.name].items()):
        names = [
            f"{task}/{name}" for task, metrics in result["results"].items() for name in metrics
        ]
        if metric not in names:
            raise UserError(f"cell {cell.name}: no metric {metric}, there are {', '.join(names)}")
        task, name = metric.split("/", 1)
        value = result["results"][task][name]
        values[seed] = math.nan if value is None else value
    return values


def _mean_and_std(values: list[float]) -> tuple[float, float]:
    mean = np.mean(values) if values else math.nan
    std = np.std(values, ddof=1) if len(values) > 1 else math.nan
    return round(float(mean), 3), round(float(std), 3)


def _markdown(rows: list[dict], metrics: list[str], first: str) -> str:
    """A line for each cell, a column for each metric."""
    header = ["cell", *metrics, *(f"{metric} minus {first}" for metric in metrics)]
    header += ["seeds", "pretraining", "images", "s"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        line = [row["cell"], *(_with_spread(row, metric) for metric in metrics)]
        line += [_format(row[f"{m} minus first"], row[f"{m} minus first, error"]) for m in metrics]
        line += [str(row["seeds"]), row["budget"] or "-"]
        lines.append(line + [_format(row[cost], digits=0) for cost in ("images", "seconds")])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _with_spread(row: dict, metric: str) -> str:
    return _format(row[metric], row[f"{metric} std"])


def _format(mean: float, spread: float = math.nan, digits: int = 2) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:,.{digits}f}" + ("" if math.isnan(spread) else f" ± {spread:.{digits}f}")


def draw_plot(rows: list[dict], metrics: list[str], settings: DictConfig) -> Figure:
    """A panel for each metric: bars or, where ``x_label`` is set, lines over the cells' x."""
    height = 4.3 if settings.x_label else 1.5 + 0.5 * len(rows)
    figure = Figure(figsize=(5.5 * len(metrics), height), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        if settings.x_label:
            _draw_lines(axis, rows, metric)
            axis.set(xlabel=settings.x_label, ylabel=metric)
        else:
            _draw_bars(axis, rows, metric)
            axis.set(xlabel=metric)
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    figure.suptitle(settings.title, fontsize=11)
    figure.supxlabel("mean and standard deviation; dots: single seeds", fontsize=8)
    return figure


def _draw_bars(axis: Axes, rows: list[dict], metric: str) -> None:
    for place, row in enumerate(rows):
        values, spread = row[f"{metric} values"], row[f"{metric} std"]
        axis.barh(place, row[metric], xerr=spread, color="lightsteelblue", capsize=5)
        axis.plot(values, [place] * len(values), "k.")
    labels = [f"{row['cell']}\n{_with_spread(row, metric)}" for row in rows]
    axis.set_yticks(range(len(rows)), labels)
    axis.invert_yaxis()  # the first on top, as in the table


def _draw_lines(axis: Axes, rows: list[dict], metric: str) -> None:
    """A line for each name under ``line``; a cell without x is a dashed line across."""
    placed = sorted((row for row in rows if row["x"] is not None), key=lambda row: row["x"])
    for number, line in enumerate(dict.fromkeys(row["line"] for row in placed)):
        points = [row for row in placed if row["line"] == line]
        xs, means, stds = ([row[key] for row in points] for key in ("x", metric, f"{metric} std"))
        axis.errorbar(xs, means, stds, color=f"C{number}", marker="s", capsize=5, label=line)
        for row in points:
            values = row[f"{metric} values"]
            axis.plot([row["x"]] * len(values), values, "k.", zorder=3)
    for row in rows:
        if row["x"] is None:
            label = f"{row['cell']}: {_with_spread(row, metric)}"
            axis.axhline(row[metric], color="dimgrey", linestyle="--", label=label)
    axis.set_xticks(sorted({row["x"] for row in placed}))
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=9)
