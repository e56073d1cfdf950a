"""The table and the plot of an ablation, from the records of its cells."""

import csv
import io
import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure
from omegaconf import DictConfig

from .ablation_plan import Cell
from .pictures import new_figure, save_figure

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
)


def write_table(cells: list[Cell], records: Iterable[dict], cfg: DictConfig, output: Path) -> None:
    """Writes ``table.md``, ``table.csv`` and ``plot.png``.

    Args:
        cells: In the order of the rows.
        records: Of the cells and seeds that are done.
        cfg: The ablation's config.
        output: The folder.
    """
    records = sorted(records, key=lambda record: record["seed"])
    rows = [_row(cell, [r for r in records if r["cell"] == cell.name]) for cell in cells]
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {"values": _all(row["values"])} for row in rows)
    (output / "table.csv").write_text(table.getvalue())
    (output / "table.md").write_text(_markdown(rows, records, cfg))
    save_figure(_plot(cells, rows, cfg.run), output / "plot.png")


def format_number(value: float | None, digits: int = 2) -> str:
    """None, what does not exist or could not be computed, is a dash."""
    return "-" if value is None else f"{value:,.{digits}f}"


def _all(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def _row(cell: Cell, records: list[dict]) -> dict:
    """Means over seeds; what does not exist (a spread of one seed, say) is None."""
    values = [math.nan if r["value"] is None else r["value"] for r in records]
    pretrained = [r["pretrain"] for r in records if r["pretrain"]]
    return {
        "cell": cell.name,
        "metric": cell.metric,
        "mean": _mean(values),
        "std": round(statistics.stdev(values), 2) if len(values) > 1 else None,
        "seeds": len(values),
        "values": values,
        "pretrain_seconds": _mean([p["seconds"] for p in pretrained]),
        "downstream_seconds": _mean([r["downstream"]["seconds"] for r in records]),
        "pretrain_images": pretrained[0]["images"] if pretrained else None,
    }


def _mean(values: list[float]) -> float | None:
    return round(statistics.fmean(values), 2) if values else None


def _markdown(rows: list[dict], records: list[dict], cfg: DictConfig) -> str:
    (key,) = (key for key in ("epochs", "images", "minutes") if cfg.budget[key] is not None)
    metrics = sorted({row["metric"] for row in rows})
    lines = [
        f"# {cfg.run.title}",
        "",
        f"Budget of each pretraining: {cfg.budget[key]:g} {key}. {', '.join(metrics)} of the last "
        "evaluation: mean, standard deviation (n - 1) and single values over seeds. Seconds are "
        "means over seeds.",
        "",
        "| cell | mean | std | seeds | single values | pretraining, s | downstream, s | "
        "pretraining images |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        metric = f" ({row['metric']})" if len(metrics) > 1 else ""
        numbers = [format_number(row[key]) for key in ("mean", "std")]
        numbers += [str(row["seeds"]), _all(row["values"])]
        costs = ("pretrain_seconds", "downstream_seconds", "pretrain_images")
        numbers += [format_number(row[key], 0) for key in costs]
        lines.append(f"| {row['cell']}{metric} | {' | '.join(numbers)} |")
    machines = sorted({f"{r['machine']}, lomar_det {r['lomar_det']}" for r in records})
    dates = [record["date"] for record in records]
    lines += ["", f"{' to '.join(sorted({min(dates), max(dates)}))}: {'; '.join(machines)}."]
    return "\n".join(lines) + "\n"


def _plot(cells: list[Cell], rows: list[dict], settings: DictConfig) -> Figure:
    """Bars; or, with a label for the horizontal axis, a line over the cells' places on it.

    Single seeds are dots. Cells without a place are dashed lines across.
    """
    done = [(cell, row) for cell, row in zip(cells, rows, strict=True) if row["seeds"]]
    figure = new_figure((max(5, 1.1 * len(done)), 4))
    axis = figure.subplots()
    if settings.x_label:
        placed = sorted((cell.x, row["cell"], row) for cell, row in done if cell.x is not None)
        for cell, row in done:
            if cell.x is None:
                axis.axhline(row["mean"], color="grey", linestyle="--", label=cell.name)
                axis.legend()
    else:
        placed = [(place, row["cell"], row) for place, (_, row) in enumerate(done)]
    places, names = [item[0] for item in placed], [item[1] for item in placed]
    means = [row["mean"] for *_, row in placed]
    spread = [row["std"] or 0 for *_, row in placed]
    if settings.x_label:
        axis.errorbar(places, means, spread, marker="s", capsize=4)
        axis.set(xlabel=settings.x_label, xticks=places)
    else:
        axis.bar(places, means, yerr=spread, capsize=4, color="lightsteelblue")
        axis.set_xticks(places, names, rotation=20, ha="right")
    for place, _, row in placed:
        axis.plot([place] * row["seeds"], row["values"], "k.")
    axis.set(ylabel=" / ".join(sorted({row["metric"] for row in rows})), title=settings.title)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    return figure
