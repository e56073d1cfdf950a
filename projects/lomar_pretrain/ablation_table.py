"""The table and the plot of an ablation, from the records of its cells."""

import csv
import io
import math
import statistics
from collections.abc import Iterable
from pathlib import Path

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


def write_table(
    cells: list[Cell], records: Iterable[dict], settings: DictConfig, output: Path
) -> None:
    """Writes ``table.md``, ``table.csv`` and ``plot.png``.

    Args:
        cells: In the order of the rows.
        records: Of the cells and seeds that are done.
        settings: ``run`` of the ablation's config: ``title``, ``x_label``.
        output: The folder.
    """
    records = list(records)
    rows = [_row(cell, [r for r in records if r["cell"] == cell.name]) for cell in cells]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {"values": " ".join(f"{v:.2f}" for v in row["values"])} for row in rows)
    (output / "table.csv").write_text(text.getvalue())
    (output / "table.md").write_text(_markdown(rows, records, settings.title))
    save_figure(_plot(cells, rows, settings), output / "plot.png")


def _row(cell: Cell, records: list[dict]) -> dict:
    """Means over seeds; what does not exist (a spread of one seed, say) is None."""
    records = sorted(records, key=lambda record: record["seed"])
    values = [math.nan if r["value"] is None else r["value"] for r in records]
    pretrained = [r["pretrain"] for r in records if r["pretrain"]]
    row = {"cell": cell.name, "metric": cell.metric, "seeds": len(values), "values": values}
    row["mean"] = _rounded(values)
    row["std"] = round(statistics.stdev(values), 2) if len(values) > 1 else None
    row["pretrain_seconds"] = _rounded([p["seconds"] for p in pretrained])
    row["downstream_seconds"] = _rounded([r["downstream"]["seconds"] for r in records])
    row["pretrain_images"] = pretrained[0]["images"] if pretrained else None
    return row


def _rounded(values: list[float]) -> float | None:
    return round(statistics.fmean(values), 2) if values else None


def _markdown(rows: list[dict], records: list[dict], title: str) -> str:
    metrics = sorted({row["metric"] for row in rows})
    several = len(metrics) > 1
    head = ["cell", *(["metric"] if several else []), "mean", "std", "seeds", "single seeds"]
    head += ["pretraining, s", "downstream, s", "pretraining images"]
    lines = [f"# {title}", "", f"{', '.join(metrics)}, of the last evaluation. Standard deviation"]
    lines[-1] += " over seeds (n - 1); seconds are means over seeds."
    lines += ["", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in rows:
        entries = [row["cell"], *([row["metric"]] if several else [])]
        entries += [_text(row["mean"]), _text(row["std"]), str(row["seeds"])]
        entries += [" ".join(f"{value:.2f}" for value in row["values"]) or "-"]
        entries += [_text(row[f"{stage}_seconds"], 0) for stage in ("pretrain", "downstream")]
        entries.append(_text(row["pretrain_images"], 0))
        lines.append(f"| {' | '.join(entries)} |")
    machines = sorted({f"{r['machine']}, lomar_det {r['lomar_det']}" for r in records})
    dates = " to ".join(sorted({min(r["date"] for r in records), max(r["date"] for r in records)}))
    lines += ["", f"{dates}: {'; '.join(machines)}."]
    return "\n".join(lines) + "\n"


def _text(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _plot(cells: list[Cell], rows: list[dict], settings: DictConfig):
    """Bars; or, where the config names a horizontal axis, a line over it.

    Single seeds are dots. Cells without a place on that axis are dashed lines across.
    """
    figure = new_figure((max(5, 1.1 * len(cells)), 4))
    axis = figure.subplots()
    done = [(cell, row) for cell, row in zip(cells, rows, strict=True) if row["seeds"]]
    places = {
        cell.name: (cell.x if settings.x_label else number) for number, (cell, _) in enumerate(done)
    }
    placed = [(places[cell.name], row) for cell, row in done if places[cell.name] is not None]
    if settings.x_label:
        placed.sort(key=lambda item: item[0])
    x, means = [place for place, _ in placed], [row["mean"] for _, row in placed]
    spread = [row["std"] or 0 for _, row in placed]
    if settings.x_label:
        axis.errorbar(x, means, spread, marker="s", capsize=4)
        for cell, row in done:
            if places[cell.name] is None:
                axis.axhline(row["mean"], color="grey", linestyle="--", label=cell.name)
                axis.legend()
        axis.set(xlabel=settings.x_label, xticks=x)
    else:
        axis.bar(x, means, yerr=spread, capsize=4, color="lightsteelblue")
        axis.set_xticks(x, [row["cell"] for _, row in placed], rotation=20, ha="right")
    for place, row in placed:
        axis.plot([place] * row["seeds"], row["values"], "k.")
    axis.set(ylabel=" / ".join(sorted({row["metric"] for row in rows})), title=settings.title)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    return figure
