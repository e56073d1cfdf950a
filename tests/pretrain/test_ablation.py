"""Ablations: a stopped grid continues to the same table, and mistakes are named."""

import csv
import json
import os
import signal

import numpy as np
import pytest
import torch
from common import (
    ROOT,
    TINY_DETECTOR,
    TINY_PRETRAIN,
    data_settings,
    run_two_processes,
    tool_args,
)
from omegaconf import OmegaConf
from PIL import Image

from lomar_det.engine import load_plain
from lomar_det.engine.config import load_config
from lomar_det.engine.hooks import SeedEachStep
from lomar_det.errors import UserError
from lomar_pretrain import ablation, ablation_records, engine
from lomar_pretrain.ablation import main
from lomar_pretrain.ablation_plan import Cell, plan_cells
from lomar_pretrain.ablation_table import _plot, write_table

CONFIGS = sorted((ROOT / "configs" / "ablation").glob("*.py"))
TINY = ["embed_dim=32", "depth=2", "num_heads=2", "img_size=32"]
FINETUNE = [*(f"model.{setting}" for setting in TINY)]
FINETUNE += ["train.total_batch_size=8", "train.device=cpu", "data.num_workers=0"]
FINETUNE += ["train.epochs=2", "train.warmup_epochs=0", "train.base_lr=0.05"]

CONFIG = """
from omegaconf import OmegaConf
pretrain = OmegaConf.create(
    {"config": "lomar_vit_tiny", "data": "???", "overrides": %(pretrain)r}
)
downstream = OmegaConf.create({
    "stage": %(stage)r, "config": %(recipe)r, "data": "???", "overrides": %(downstream)r,
    "metric": %(metric)r,
})
cells = OmegaConf.create(%(cells)r)
budget = OmegaConf.create(
    {"epochs": None, "images": 20, "minutes": None, "calibration_steps": 2}
)
run = OmegaConf.create(
    {"seeds": [0], "output_dir": "", "pretrain_dir": None, "title": "Test", "x_label": None}
)
"""


@pytest.fixture
def colours(tmp_path):
    """Two classes, noise of one colour each."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(("green", "red")):
        folder = tmp_path / "colours" / name
        folder.mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
            pixels[..., index] += 100
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "colours"


@pytest.fixture
def ablate(tmp_path, colours, monkeypatch):
    """Runs the command on a config of these cells; ``output`` is a folder's name."""
    monkeypatch.setattr(engine, "plot_training", lambda *_: None)  # half of the time, else

    def run(cells, output, *opts, stage=None, start=main):
        settings = {
            "pretrain": TINY_PRETRAIN,
            "stage": "finetune",
            "recipe": "finetune_lomar_vit_tiny",
            "downstream": FINETUNE,
            "metric": "classification/top1",
            "cells": cells,
        }
        path = tmp_path / "ablation.py"
        path.write_text(CONFIG % (settings | (stage or {})))
        opts = [f"downstream.data={colours}", *opts]  # the first may be overridden
        opts = [f"pretrain.data={colours}", f"run.output_dir={tmp_path / output}", *opts]
        return start(tool_args(path, *opts))

    return run


KNN = {
    "recipe": "linear_lomar_vit_tiny",
    "downstream": [s.replace("model.", "model.encoder.") for s in FINETUNE] + ["train.knn=3"],
    "metric": "classification/knn_top1",
}


def started(capsys):
    """Folders of the runs that were started since this was last asked, two levels of each."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("--- ")]
    return ["/".join(line.split("/")[-3:]) for line in lines]


def table(folder):
    """Rows of the table, without the seconds."""
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    return [{key: row[key] for key in row if "seconds" not in key} for row in rows]


def interrupt(monkeypatch, number):
    """SIGTERM in the third step of the run with this number."""
    before_step, started = SeedEachStep.before_step, []

    def and_signal(hook):
        before_step(hook)
        if hook.trainer.iter == hook.trainer.start_iter:
            started.append(hook.trainer.max_iter)
        if len(started) == number and hook.trainer.iter == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SeedEachStep, "before_step", and_signal)


def test_a_stopped_grid_continues_to_the_same_table(ablate, tmp_path, monkeypatch, capsys):
    cells = {"lomar": {}, "more_windows": {"pretrain": {"overrides": ["model.num_windows=3"]}}}
    ablate(cells, "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, 3)  # the second cell's pretraining
        with pytest.raises(SystemExit) as stop:
            ablate(cells, "cut")
    assert stop.value.code == 143
    cut = tmp_path / "cut"
    first = cut / "lomar" / "seed0" / "cell.json"
    finished = first.read_bytes()
    assert not (cut / "more_windows" / "seed0" / "cell.json").exists()
    assert table(cut)[0]["values"] and not table(cut)[1]["values"]  # one can look early
    stopped = json.loads((cut / "more_windows" / "seed0" / "pretrain" / "run.json").read_text())
    capsys.readouterr()
    records = ablate(cells, "cut")
    assert "continued: " in capsys.readouterr().out
    assert table(cut) == table(tmp_path / "whole") and first.read_bytes() == finished
    assert records[1]["pretrain"]["seconds"] > stopped["seconds"] > 0
    # 20 pictures of batch 4 are 5 steps, whatever an epoch of 16 pictures would round them to
    assert [row["pretrain_images"] for row in table(cut)] == ["20", "20"]
    weights = [
        load_plain(tmp_path / run / "more_windows" / "seed0" / "pretrain" / "model_final.pth")
        for run in ("cut", "whole")
    ]
    torch.testing.assert_close(weights[0]["model"], weights[1]["model"], rtol=0, atol=0)
    # a third time there is nothing left to do
    before = {path: path.stat().st_mtime_ns for path in cut.rglob("*.*") if path.parent != cut}
    assert ablate(cells, "cut") == records
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def test_the_same_pretraining_is_run_once_and_random_weights_not_at_all(ablate, tmp_path):
    cells = {"lomar": {}, "lomar_again": {}, "random": {"pretrain": None}, "left_out": None}
    opts = ["budget.images=8", "run.seeds=[0,1]"]
    first, second, random, *others = ablate(cells, "out", *opts, stage=KNN)
    assert first["value"] == second["value"] and others[0]["seed"] == 1
    assert first["pretrain"] == second["pretrain"] and random["pretrain"] is None
    folders = {path.parent.parent.name for path in (tmp_path / "out").glob("*/seed0/pretrain")}
    assert folders == {"lomar"}
    values = first["value"], others[0]["value"]
    row = table(tmp_path / "out")[0]
    assert float(row["mean"]) == pytest.approx(sum(values) / 2, abs=0.01)
    assert float(row["std"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5, abs=0.01)
    text = (tmp_path / "out" / "table.md").read_text("utf-8")
    assert "| random |" in text and "CPU cores" in text and str(tmp_path) not in text
    assert (tmp_path / "out" / "plot.png").stat().st_size > 0


def test_another_ablation_shares_the_pretraining(ablate, tmp_path, capsys):
    cells = {"random": {"pretrain": None}, "lomar": {}}
    opts = ["budget.images=8"]
    first = ablate(cells, "first", *opts, stage=KNN)
    assert started(capsys) == [
        "random/seed0/downstream",
        "lomar/seed0/pretrain",
        "lomar/seed0/downstream",
    ]
    opts.append(f"run.pretrain_dir={tmp_path / 'first'}")
    second = ablate(cells, "second", *opts)
    assert started(capsys) == ["random/seed0/downstream", "lomar/seed0/downstream"]
    assert second[1]["pretrain"] == first[1]["pretrain"] and "top1" in second[1]["metric"]
    assert not list((tmp_path / "second").rglob("pretrain"))
    weights = tmp_path / "first" / "lomar" / "seed0" / "pretrain" / "backbone_final.pth"
    log = (tmp_path / "second" / "lomar" / "seed0" / "downstream" / "log.txt").read_text()
    assert str(weights) in log
    # a further seed is pretrained there, too
    ablate(cells, "second", *opts, "run.seeds=[0,1]")
    assert started(capsys) == [
        "random/seed1/downstream",
        "lomar/seed1/pretrain",
        "lomar/seed1/downstream",
    ]
    assert (weights.parents[2] / "seed1" / "pretrain" / "run.json").is_file()
    cells["lomar"] = {"pretrain": {"overrides": ["model.num_windows=3"]}}
    changed = r"first.lomar.seed0.pretrain was .*model.num_windows was 2, and is 3.*pretrain_dir"
    with pytest.raises(UserError, match=changed):
        ablate(cells, "third", *opts)
    assert not started(capsys) and not (tmp_path / "third").exists()


def test_metrics_are_chosen_afterwards(ablate, tmp_path, capsys):
    """Table and plot follow; nothing is run again, and no record is touched."""
    cells = {"a": {"pretrain": None}, "b": {"pretrain": None}}
    ablate(cells, "out")
    out = tmp_path / "out"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.parent != out}
    plot, _ = (out / "plot.png").read_bytes(), capsys.readouterr()
    metrics = ["classification/top5", "classification/top1"]
    cells["b"]["downstream"] = {"metric": "classification/images"}
    records = ablate(cells, "out", f"downstream.metric=[{','.join(metrics)}]")
    assert not started(capsys)
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*.*") if p.parent != out}
    assert [(row["cell"], row["metric"]) for row in table(out)] == [
        ("a", metrics[0]),
        ("a", metrics[1]),
        ("b", "classification/images"),
    ]
    for row, record in zip(table(out), (records[0], *records), strict=True):
        value = record["downstream"]["results"]["classification"][row["metric"].split("/")[1]]
        assert row["values"] == f"{value:.2f}"
    assert (out / "plot.png").read_bytes() != plot
    with pytest.raises(UserError, match="cell a: no metric .*knn_top1 .*classification/top1, "):
        ablate(cells, "out", "downstream.metric=[classification/top1,classification/knn_top1]")


def write_with_witness(args):
    """``main``; each file of the ablation's own that is written leaves a line with its process."""

    def witness(write):
        def and_note(record, path, *rest):
            with open(args.witness, "a") as file:
                file.write(f"{os.environ['RANK']}\n")
            return write(record, path, *rest)

        return and_note

    ablation_records.save_atomically = witness(ablation_records.save_atomically)
    ablation.write_table = witness(ablation.write_table)
    main(args)


def test_two_processes_make_one_table(ablate, tmp_path):
    """Over gloo: both train, one writes."""
    cells = {"random": {"pretrain": None}, "lomar": {}}
    opts = ["budget.images=8"]
    ablate(cells, "one", *opts)
    witness = tmp_path / "witness.txt"

    def start(args):
        args.witness = str(witness)
        run_two_processes(write_with_witness, args)

    ablate(cells, "two", *opts, start=start)
    written = witness.read_text().split()
    # three runs' records when they start, end and are dated, two of cells, a table after each
    assert written == ["0"] * (3 * 3 + 2 + 2)
    assert table(tmp_path / "two") == table(tmp_path / "one")
    log = (tmp_path / "two" / "lomar" / "seed0" / "pretrain" / "log.txt").read_text()
    assert "2 process(es)" in log
    lines = (tmp_path / "two" / "lomar" / "seed0" / "pretrain" / "metrics.json").read_text()
    assert [json.loads(line)["iteration"] for line in lines.splitlines()] == [0, 1]


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


def test_changed_settings_of_a_finished_cell_are_refused(ablate, tmp_path, monkeypatch):
    cells = {"random": {"pretrain": None}}
    record = ablate(cells, "out")[0]
    assert ablate(cells, "out", "budget.images=100") == [record]  # not this cell's
    stage = {"downstream": [*FINETUNE, "data.num_workers=1", "data.max_bad_fraction=0.5"]}
    assert ablate(cells, "out", stage=stage) == [record]
    stage = {"downstream": [*FINETUNE, "train.base_lr=0.1"]}
    with pytest.raises(UserError, match="random/seed0.*train.base_lr was 0.05, and is 0.1 now.*de"):
        ablate(cells, "out", stage=stage)
    with pytest.raises(UserError, match="random/seed0.*pretrain"):
        ablate({"random": {}}, "out")
    # of a run that was only begun, as well
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        with pytest.raises(SystemExit):
            ablate({"lomar": {}}, "begun")
    fewer = {"lomar": {"pretrain": {"overrides": ["model.num_windows=1"]}}}
    with pytest.raises(UserError, match="lomar/seed0.*pretrain.*model.num_windows was 2"):
        ablate(fewer, "begun")
    for path in (tmp_path / "begun").rglob("model_*.pth"):
        path.unlink()  # killed before its first checkpoint: there is nothing to mix
    assert ablate(fewer, "begun")[0]["pretrain"]["settings"]["model"]["num_windows"] == 1
    metrics = tmp_path / "begun" / "lomar" / "seed0" / "pretrain" / "metrics.json"
    assert [json.loads(line)["iteration"] for line in metrics.read_text().splitlines()] == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_minutes_give_each_cell_the_same_time(ablate, tmp_path, monkeypatch, capsys):
    """A slower step makes for fewer of them; it is measured once."""
    read = engine.read_metrics

    def as_if_timed(path):
        return [line | {"time": 0.5 if "slow" in str(path) else 0.25} for line in read(path)]

    monkeypatch.setattr(engine, "read_metrics", as_if_timed)
    cells = {"fast": {}, "slow": {"pretrain": {"overrides": ["model.num_windows=3"]}}}
    cells["longer"] = cells["slow"] | {"budget": {"minutes": 0.1}}  # at its pace: not timed
    cells["few"] = {"budget": {"images": 8}}
    budget = ["budget.images=null", "budget.minutes=0.05"]
    records = ablate(cells, "out", *budget)
    assert [record["pretrain"]["images"] for record in records] == [12 * 4, 6 * 4, 12 * 4, 8]
    longer = tmp_path / "out" / "longer" / "calibration.json"
    assert longer.read_text() == (tmp_path / "out" / "slow" / "calibration.json").read_text()
    text = (tmp_path / "out" / "table.md").read_text("utf-8")
    assert "| 0.1 minutes |" in text and "| 8 images |" in text
    calibration = json.loads((tmp_path / "out" / "slow" / "calibration.json").read_text())
    assert (calibration["seconds_per_step"], calibration["steps"]) == (0.5, 2)
    assert not (tmp_path / "out" / "slow" / "calibration").exists()
    monkeypatch.setattr(engine, "read_metrics", None)
    assert ablate(cells, "out", *budget) == records
    del cells["longer"], cells["few"]
    # nor once there are runs of that length, whatever settings are tried
    cells["slow"]["pretrain"]["overrides"] = ["model.num_windows=1"]
    for where in (["out"], ["other", f"run.pretrain_dir={tmp_path / 'out'}"]):
        with pytest.raises(UserError, match="out.slow was .*num_windows was 3.*pretrain_dir"):
            ablate(cells, *where, *budget)
    path = tmp_path / "out" / "slow" / "calibration.json"
    assert json.loads(path.read_text()) == calibration


def test_a_detector_downstream(ablate, drawn_set, tmp_path):
    stage = {"stage": "detection", "recipe": "mask_rcnn_lomar_vit_tiny"}
    stage["metric"] = ["bbox/AP50", "segm/AP"]
    stage["downstream"] = [*TINY_DETECTOR, *data_settings(*drawn_set), "train.max_iter=1"]
    absolute = ["model.backbone.net.rel_pos=none", "model.backbone.net.use_abs_pos=True"]
    cells = {
        "lomar_absolute": {
            "pretrain": {"overrides": ["model.rel_pos=False", "model.abs_pos=True"]},
            "downstream": {"overrides": absolute},
        }
    }
    record = ablate(cells, "out", "downstream.data=null", "budget.images=4", stage=stage)[0]
    assert record["value"] == record["downstream"]["results"]["bbox"]["AP50"]
    assert [row["metric"] for row in table(tmp_path / "out")] == stage["metric"]
    with pytest.raises(UserError, match="cell lomar_absolute: .*without iRPE.*rel_pos"):
        del cells["lomar_absolute"]["downstream"]
        ablate(cells, "fails", "downstream.data=null", "budget.images=4", stage=stage)


@pytest.mark.parametrize(
    "cells, opts, message",
    [
        ({"a": {"pretrian": None}}, [], "cells.a has no setting 'pretrian'"),
        ({"a": {"pretrain": {"opts": []}}}, [], "cells.a.pretrain has no setting 'opts'"),
        ({"a/b": {}}, [], "'a/b' is no name"),
        ({}, [], "no cells"),
        ({"a": 3}, [], "cells.a has no setting '3'"),
        ({"a": {}}, ["pretrain.overrides=3"], "pretrain.overrides=3 must be a list"),
        ({"a": {}}, ["pretrain.overrides=[3]"], r"pretrain.overrides=\[3\] must be a list"),
        ({"a": {"pretrain": {"overrides": [5]}}}, [], r"cell a: pretrain.overrides=\[5\] must be"),
        ({"a": {}}, ["pretrain.config=null"], "pretrain.config=None must be text"),
        ({"a": {}}, ["pretrain.data=null"], "cell a: pretrain.data is not set"),
        ({"a": {"x": "wide"}}, [], "cell a: x=wide must be a number"),
        ({"a": {"line": "_a"}}, [], "cell a: line=_a must be a name that does not begin with"),
        ({"a": {"line": "l"}}, [], "cells.a has a line, and no x"),
        ({n: {"line": "l", "x": 1} for n in "ab"}, [], "several have x=1 on the line 'l'"),
        ({"a": {"budget": {"images": -1}}}, [], "cell a: budget.images=-1 must be"),
        ({"a": {"budget": {"hours": 1}}}, [], "cells.a.budget has no setting 'hours'"),
        ({"a": {"budget": {}}}, [], "cells.a.budget has nothing: give one of"),
        ({"a": {"budget": {"images": 1, "epochs": 1}}}, [], "cells.a.budget has epochs and images"),
        ({"a": {"pretrain": None, "budget": {"images": 1}}}, [], "cells.a has a budget, and no"),
        ({"a": None, "b": None}, [], "cells: all of a, b are null"),
        ({"..": {}}, [], "'..' is no name"),
        ({"a": {"pretrain": {"config": "lomar_vit_x"}}}, [], "cell a: .*lomar_vit_x; recipes: "),
        ({"a": {"downstream": {"overrides": ["model.dpeth=1"]}}}, [], "cell a: .*'model.dpeth'"),
        ({"a": {}}, ["budget.epochs=3"], "epochs and images: give one of"),
        ({"a": {}}, ["budget.images=null"], "nothing: give one of"),
        ({"a": {}}, ["budget.images=-1"], "budget.images=-1 must be"),
        ({"a": {}}, ["run.seeds=3"], r"run.seeds=3 must be a list"),
        ({"a": {}}, ["run.seeds=[1,1]"], r"run.seeds=\[1, 1\] must be a list of different"),
        ({"a": {}}, ["run.seeds=[one]"], r"run.seeds=\['one'\] must be a list"),
        ({"a": {}}, ["run.seeds=[4294967296]"], "each from 0 to"),
        ({"a": {}}, ["run=3"], "the config has no run.seeds"),
        ({"a": {}}, ["run.output_dir=null"], "run.output_dir=None must be text"),
        ({"a": {}}, ["run.output_dir=''"], "run.output_dir= must be text, and not empty"),
        (
            {"a": {}},
            ["run.output_dir=/dev/null"],
            "null/a/seed0/.* cannot be written: .*output_dir",
        ),
        ({"a": {}}, ["run.pretrain_dir=/dev/null"], "/pretrain cannot be written: .*pretrain_dir"),
        ({"a": {}}, ["pretrain.data='???'"], "cell a: pretrain.data is not set"),
        ({"a": {}}, ["pretrain.data=gone"], "cell a: gone"),
        ({"a": {"downstream": {"metric": "bbox/AP"}}}, [], "cell a: .*bbox/AP is none .*classif"),
        ({"a": {}}, ["downstream.metric=classification/top2"], "/top2 is none of the stage finetu"),
        (
            {"a": {"pretrain": None}},
            ["downstream.metric=classification/knn_top1"],
            "cell a: no metric classification/knn_top1.*classification/top1",
        ),
        ({"a": {"downstream": {"metric": []}}}, [], r"cell a: downstream.metric=\[\] must be TASK"),
        ({"a": {}}, ["downstream.metric=[top1]"], "downstream.metric=.*'top1'.* must be TASK/NAME"),
    ],
)
def test_mistakes_are_named(ablate, tmp_path, cells, opts, message):
    with pytest.raises(UserError, match=message):
        ablate(cells, "out", *opts)


def test_nothing_for_an_option_is_null_in_a_run_too(ablate, colours):
    data = f"pretrain.data={{path: [{colours}], image_root: null}}"
    cells = ablate({"a": {}}, "out", data, start=lambda args: plan_cells(load(args)))
    assert cells[0].pretrain.load().data.image_root is None


def load(args):
    return load_config(args.config_file, args.opts)


def test_damaged_records_and_missing_weights_are_named(ablate, tmp_path):
    cells, opts = {"a": {}}, ["budget.images=4"]
    ablate(cells, "out", *opts, stage=KNN)
    seed = tmp_path / "out" / "a" / "seed0"
    for path in (seed / "cell.json", seed / "pretrain" / "run.json"):
        whole = path.read_text()
        for content in (whole[:30], "[]", "3", "", '{"settings": {}}'):
            path.write_text(content)
            with pytest.raises(UserError, match=f"{path} cannot be used .*delete it"):
                ablate(cells, "out", *opts, stage=KNN)
        path.write_text(whole)
        (seed / "cell.json").unlink(missing_ok=True)  # with it, the other need not be read
    (seed / "downstream" / "run.json").unlink()
    (seed / "pretrain" / "backbone_final.pth").unlink()
    with pytest.raises(
        UserError, match="cell a: .*pretrain is done, but its backbone_final.pth is"
    ):
        ablate(cells, "out", *opts, stage=KNN)


def test_two_commands_do_not_share_a_run(ablate, tmp_path, monkeypatch):
    """One would delete what the other is writing."""
    cells, opts = {"a": {}}, ["budget.images=8", f"run.pretrain_dir={tmp_path / 'first'}"]
    before_step, refused = SeedEachStep.before_step, []

    def and_start_another(hook):
        before_step(hook)
        if not refused:
            refused.append(True)  # not in the other's steps, had it any
            with pytest.raises(UserError, match="cell a: another command .*first.a.seed0.pretrain"):
                ablate(cells, "second", *opts, stage=KNN)

    monkeypatch.setattr(SeedEachStep, "before_step", and_start_another)
    first = ablate(cells, "first", *opts, stage=KNN)
    assert refused
    second = ablate(cells, "second", *opts, stage=KNN)  # now it is free
    assert second[0]["pretrain"] == first[0]["pretrain"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_recipes_plan_and_pair_positions(path, tmp_path):
    """Every cell's downstream model has the positions that it was pretrained with."""
    cfg = load_config(path, ["pretrain.data=IMAGES", f"run.output_dir={tmp_path}"])
    cfg.downstream.data = None
    cfg.budget.update(epochs=30, minutes=None)  # minutes would be measured
    for cell in cfg.cells.values():
        if "minutes" in cell.get("budget", {}):
            cell.budget = {"epochs": cell.budget.minutes}
    cells = plan_cells(cfg)
    assert cells[0].name == "random" and cells[0].pretrain is None
    for cell in cells[1:]:
        assert cell.pretrain_dir.name == cell.name
        pretrain, downstream = cell.pretrain.load(), cell.downstream.load().model
        model = pretrain.model
        assert pretrain.train.warmup_epochs == pretrain.train.epochs / 10
        net = (
            downstream.backbone.net
            if "backbone" in downstream
            else (downstream.get("encoder", downstream))
        )
        absolute = net.get("abs_pos", net.get("use_abs_pos"))
        assert absolute == model.abs_pos and (net.rel_pos in (True, "irpe")) == model.rel_pos
        assert net.embed_dim == model.embed_dim
    if path.stem == "figure1_tiny":
        assert [cell.x for cell in cells] == [None, 1, 2, 4, 6]
        assert [c.pretrain.load().model.num_windows for c in cells[1:]] == [1, 2, 4, 6]
    if path.stem in ("detection_minutes_tiny", "table1_epochs_tiny"):
        for cell in cells[1:]:
            assert cell.budget == f"{cell.x} epochs" and ("MAE" in cell.line) == (
                "mae" in cell.name
            )
        assert {cell.x for cell in cells[1:]} == ({4, 16} if "minutes" in path.stem else {30, 90})
    if path.stem.startswith("table1"):
        methods = {c.name: c.pretrain.load().model._target_.__name__ for c in cells[1:]}
        assert {method for name, method in methods.items() if "mae" in name} == {"MAE"}
        assert {method for name, method in methods.items() if "lomar" in name} == {"LoMaR"}
