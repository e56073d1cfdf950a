"""The table and the plot of an ablation."""

import pytest
from ablation_plan import Cell
from ablation_table import _plot, write_table
from helpers.ablations import table
from omegaconf import OmegaConf


def fake_record(cell, seed, results, pretrain=None):
    """A ``cell.json`` as the first ones were, as far as the table reads it."""
    downstream = {"settings": {}, "seconds": 3.4, "results": results}
    record = {"cell": cell, "seed": seed, "metric": "bbox/AP", "value": 1.0, "pretrain": pretrain}
    record |= {"downstream": downstream, "machine": "a machine", "lomar_det": "0.1.0"}
    return record | {"date": f"2026-01-0{seed + 1}"}


@pytest.mark.parametrize("x_label", [None, "windows"])
def test_table_says_what_it_holds(tmp_path, x_label):
    metrics = "bbox/AP", "segm/AP"
    cells = [Cell("random", *[None] * 4, metrics)]
    cells += [Cell("one", None, None, "4 minutes", None, metrics[:1], 1)]
    cells += [Cell("two", None, None, "9 epochs", None, metrics, 20, "a line")]
    run = {"seconds": 61.2, "images": 12000, "settings": {"train": {"epochs": 2.5}}}
    records = [
        fake_record("random", 1, {"bbox": {"AP": 10.0}, "segm": {"AP": 1.0}}),
        fake_record("random", 0, {"bbox": {"AP": 12.0}, "segm": {"AP": None}}),
        fake_record("one", 0, {"bbox": {"AP": 20.0}}, run),
    ]
    cfg = OmegaConf.create({"run": {"title": "A title", "x_label": x_label}})
    write_table(cells, records, cfg, tmp_path)
    text = (tmp_path / "table.md").read_text("utf-8")
    assert text.startswith("# A title\n") and "- bbox/AP, segm/AP: at the end" in text
    *rows, _, last = text[text.index("| cell") :].splitlines()
    assert rows == [
        "| cell | bbox/AP | segm/AP | seeds | pretraining | pretraining, epochs | "
        "pretraining, images | pretraining, s | downstream, s | bbox/AP, single | "
        "segm/AP, single |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| random | 11.00 ± 1.41 | - | 0 1 | - | - | - | - | 3 | 12.00 10.00 | - 1.00 |",
        "| one | 20.00 | - | 0 | 4 minutes | 2.5 | 12,000 | 61 | 3 | 20.00 | - |",
        "| two | - | - | - | 9 epochs | - | - | - | - | - | - |",
    ]
    assert last == "a machine, lomar_det 0.1.0. 2026-01-01 to 2026-01-02."
    assert [(row["cell"], row["metric"], row["std"]) for row in table(tmp_path)] == [
        ("random", "bbox/AP", "1.41"),
        ("random", "segm/AP", ""),
        ("one", "bbox/AP", ""),
        ("two", "bbox/AP", ""),
        ("two", "segm/AP", ""),
    ]
    assert (tmp_path / "plot.png").stat().st_size > 0


def test_rows_measured_on_other_images_are_remarked_upon(tmp_path):
    metric = "classification/top1"
    cells = [Cell(name, *[None] * 4, (metric,)) for name in "ab"]
    cfg = OmegaConf.create({"run": {"title": "A title", "x_label": None}})
    for count in (40, 39):
        results = {"a": {"top1": 1.0, "images": 40}, "b": {"top1": 2.0, "images": count}}
        records = [fake_record(name, 0, {"classification": results[name]}) for name in "ab"]
        write_table(cells, records, cfg, tmp_path)
        text = (tmp_path / "table.md").read_text("utf-8")
        assert ("Not all measured on the same images, but on 39 or 40" in text) == (count == 39)


def test_lines_of_a_plot():
    """One for each name, the same colour in every panel; many places on a log scale."""

    def row(cell, metric, x, line, mean):
        row = {"cell": cell, "metric": metric, "x": x, "line": line, "mean": mean}
        return row | {"std": 1.0, "values": [mean, mean + 1]}

    rows = [row("random", metric, None, None, 3.0) for metric in ("bbox/AP", r"bbox/AP-$\foo$")]
    rows += [row("a", "bbox/AP", 4, "LoMaR", 5.0), row("b", "bbox/AP", 64, "LoMaR", 9.0)]
    rows += [row("c", metric, 4, r"$\foo$", 7.0) for metric in ("bbox/AP", r"bbox/AP-$\foo$")]
    settings = {"title": "A title", "x_label": r"$\foo$"}
    figure = _plot(rows, OmegaConf.create(settings))
    figure.draw_without_rendering()  # a formula that is none would show here
    left, right = figure.axes
    assert (left.get_xscale(), right.get_xscale()) == ("log", "linear")
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["4", "64"]
    lines = [(bar[0].get_xdata().tolist(), bar[0].get_ydata().tolist()) for bar in left.containers]
    assert lines == [([4, 64], [5.0, 9.0]), ([4], [7.0])]
    legends = (
        {text.get_text() for text in axis.get_legend().get_texts()} for axis in (left, right)
    )
    random = "random: 3.00 ± 1.00"
    assert list(legends) == [{random, "LoMaR", r"$\foo$"}, {random, r"$\foo$"}]
    assert left.containers[1][0].get_color() == right.containers[0][0].get_color()
