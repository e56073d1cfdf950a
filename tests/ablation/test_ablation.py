"""Ablations: a stopped grid continues, pretraining is shared, the table compares seeds."""

import csv
import json
import os
import signal
import sys

import pytest
from helpers.common import (
    ROOT,
    TINY_DETECTOR,
    TINY_PRETRAIN,
    data_settings,
    run_two_processes,
    tool_args,
)
from omegaconf import OmegaConf

from lomar_det.config.lazy import load_config
from lomar_det.engine.hooks import SeedEachStep
from lomar_det.errors import UserError

sys.path.insert(0, str(ROOT / "projects" / "ablation"))

from cells import Cell, read_cells  # noqa: E402
from grid import main  # noqa: E402
from table import write_table  # noqa: E402

pytestmark = pytest.mark.run

SIZE = ["model.embed_dim=32", "model.depth=2", "model.num_heads=2", "model.img_size=32"]
FINETUNE = [*SIZE, "train.total_batch_size=8", "train.device=cpu", "data.num_workers=0"]
FINETUNE += ["train.epochs=1", "train.warmup_epochs=0"]
TWO_CELLS = {"lomar": {}, "more": {"pretrain": {"overrides": ["model.num_windows=3"]}}}
CONFIGS = sorted((ROOT / "configs" / "ablation").glob("[a-z]*.py"))


@pytest.fixture
def ablate(tmp_path, green_and_red):
    """Runs the command on a config of these cells; ``output`` is a folder's name."""

    def run(cells, output, *opts, start=main, **downstream):
        stage = {"stage": "finetune", "config": "finetune_lomar_vit_tiny", "overrides": FINETUNE}
        stage |= {"data": str(green_and_red), "metric": "classification/top1"} | downstream
        pretrain = {"config": "lomar_vit_tiny", "data": "???", "overrides": TINY_PRETRAIN}
        run = {"seeds": [0], "output_dir": str(tmp_path / output), "pretrain_dir": None}
        run |= {"title": "Test", "x_label": None}
        sections = {"pretrain": pretrain, "downstream": stage, "cells": cells, "run": run}
        sections["budget"] = {"epochs": 2, "minutes": None}
        lines = [f"{name} = {section!r}" for name, section in sections.items()]
        (tmp_path / "ablation.py").write_text("\n".join(lines))
        opts = [f"pretrain.data={green_and_red}", *opts]
        return start(tool_args(tmp_path / "ablation.py", *opts))

    return run


def table(folder):
    return list(csv.DictReader((folder / "table.csv").read_text().splitlines()))


def test_a_stopped_grid_continues_to_the_same_table(ablate, tmp_path, monkeypatch):
    whole = ablate(TWO_CELLS, "whole")
    started, before_step = [], SeedEachStep.before_step

    def stop_in_third_run(hook):
        before_step(hook)
        if hook.trainer.iter == hook.trainer.start_iter:
            started.append(hook.trainer.iter)
        if len(started) == 3 and hook.trainer.iter == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SeedEachStep, "before_step", stop_in_third_run)
    with pytest.raises(SystemExit):
        ablate(TWO_CELLS, "cut")
    assert [row["cell"] for row in table(tmp_path / "cut")] == ["lomar"]  # one can look early
    with pytest.raises(UserError, match="cell lomar: .*pretrain was run with other settings"):
        ablate(TWO_CELLS, "cut", "budget.epochs=3")
    cut = ablate(TWO_CELLS, "cut")
    assert started == [0, 0, 0, 3, 0]  # the third run has a checkpoint of three steps
    for name in TWO_CELLS:
        assert cut[name][0]["results"] == whole[name][0]["results"]
        assert cut[name][0]["pretraining"]["images"] == 2 * 16
    # a third time there is nothing left to do
    assert ablate(TWO_CELLS, "cut", "downstream.metric=classification/images") == cut
    assert len(started) == 5
    assert table(tmp_path / "cut")[0]["classification/images"] == "4.0"
    with pytest.raises(UserError, match="classification/top9.*classification/top1"):
        ablate(TWO_CELLS, "cut", "downstream.metric=classification/top9")


def test_equal_pretraining_is_run_once(ablate, tmp_path):
    cells = {"random": {"pretrain": None}, "lomar": {}, "again": {}, "left_out": None}
    cells["longer"] = {"budget": {"epochs": 3}}
    results = ablate(cells, "out", "run.seeds=[0,1]")
    folders = {path.parts[-3] for path in (tmp_path / "out").glob("*/seed1/pretrain")}
    assert folders == {"lomar", "longer"}
    assert results["lomar"][1]["results"] == results["again"][1]["results"]
    assert results["longer"][0]["pretraining"]["images"] == 3 * 16
    shared = ablate({"lomar": {}}, "other", f"run.pretrain_dir={tmp_path / 'out'}")
    assert shared["lomar"][0]["pretraining"] == results["lomar"][0]["pretraining"]
    assert not list((tmp_path / "other").rglob("pretrain"))


def test_two_processes_make_the_same_results(ablate, tmp_path):
    with pytest.raises(UserError, match="cell lomar: gone"):
        ablate({"lomar": {}}, "one", "pretrain.data=gone")
    one = ablate({"lomar": {}}, "one")  # with other settings, but nothing had been run
    ablate({"lomar": {}}, "two", start=lambda args: run_two_processes(main, args))
    two = json.loads((tmp_path / "two/lomar/seed0/finetune/result.json").read_text())
    assert two["results"] == one["lomar"][0]["results"]
    assert "2 process(es)" in (tmp_path / "two/lomar/seed0/pretrain/log.txt").read_text()


def test_a_detector_downstream(ablate, drawn_set, tmp_path):
    data = data_settings(*drawn_set)
    stage = {"stage": "detection", "config": "mask_rcnn_lomar_vit_tiny", "data": None}
    stage |= {"overrides": [*TINY_DETECTOR, *data, "train.max_iter=1"]}
    result = ablate({"lomar": {}}, "out", metric=["bbox/AP50", "segm/AP"], **stage)["lomar"][0]
    ap50 = result["results"]["bbox"]["AP50"]
    assert float(table(tmp_path / "out")[0]["bbox/AP50"]) == pytest.approx(ap50, abs=1e-3)
    log = (tmp_path / "out/lomar/seed0/detection/log.txt").read_text()
    assert "out/lomar/seed0/pretrain/backbone_final.pth" in log


@pytest.mark.parametrize(
    "cell, opts, words",
    [
        ({"pretrian": None}, [], "cells.a .*'pretrian'"),
        ({}, ["run.seeds=[0,0]"], "run.seeds"),
        ({}, ["pretrain.overrides=['train.log_period=0']"], "cell a: train.log_period"),
        ({}, ["pretrain.data=gone"], "cell a: gone"),
        ({}, ["downstream.metric=top1"], "downstream.metric"),
        ({"downstream": {"overrides": ["model.dpeth=1"]}}, [], "cell a: .*'model.dpeth'"),
        ({"pretrain": {"config": "lomar_vit_x"}}, [], "cell a: .*lomar_vit_x; recipes: "),
        ({}, ["budget.minutes=1"], "cell a: .*epochs or minutes"),
        ({}, ["pretrain.data='???'"], "pretrain.data"),
        ({"pretrain": 5}, [], "cells.a.pretrain"),
    ],
)
def test_mistakes_are_named(ablate, cell, opts, words):
    with pytest.raises(UserError, match=words):
        ablate({"a": cell}, "out", *opts)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_measures_with_the_positions_of_its_pretraining(path, drawn_set):
    opts = [f"pretrain.data={drawn_set[1]}", f"downstream.data={drawn_set[1]}"]
    if "detection" in path.stem:
        opts = [f"downstream.{setting}" for setting in data_settings(*drawn_set)]
    cfg = load_config(path, opts)
    random, *others = read_cells(cfg)
    cells = [cell for cell in others if cell.run.pretraining]
    assert random.run.pretraining is None and len(cells) > 2
    for cell in cells:
        pretrained, model = cell.run.pretraining.load().model, cell.run.load().model
        net = model.backbone.net if "backbone" in model else model.get("encoder", model)
        absolute = net.get("abs_pos", net.get("use_abs_pos"))
        assert absolute == pretrained.abs_pos
        assert (net.rel_pos in (True, "irpe")) == pretrained.rel_pos
        assert net.embed_dim == pretrained.embed_dim
        assert pretrained._target_.__name__ == ("MAE" if "mae" in cell.name else "LoMaR")
        assert cell.x is None or cell.run.pretraining.folder.name == cell.name


@pytest.mark.parametrize("x_label", [None, "windows"])
def test_the_table_compares_seed_by_seed(tmp_path, x_label):
    run = {"images": 1000.0, "seconds": 61.2}

    def results(*values):
        result = {"machine": "a machine", "date": "a day", "pretraining": run}
        return {i: result | {"results": {"bbox": {"AP": v}}} for i, v in enumerate(values)}

    names = {"first": None, "second": 4, "third": 16}
    cells = [Cell(name, None, "4 minutes", x, x and "a line") for name, x in names.items()]
    done = {"first": results(10.0, 14.0), "second": results(13.0, 18.0, 20.0), "third": {}}
    settings = {"output_dir": str(tmp_path), "title": "A title", "x_label": x_label}
    cfg = OmegaConf.create({"run": settings, "downstream": {"metric": "bbox/AP"}})
    write_table(cells, done, cfg)
    first, second = table(tmp_path)
    assert (first["bbox/AP"], first["seeds"], first["bbox/AP minus first"]) == ("12.0", "2", "nan")
    assert float(first["bbox/AP std"]) == pytest.approx(8**0.5, abs=1e-3)
    assert (second["bbox/AP"], second["bbox/AP minus first"]) == ("17.0", "3.5")
    assert second["bbox/AP minus first, error"] == "0.5"
    text = (tmp_path / "table.md").read_text("utf-8")
    assert "| first | 12.00 ± 2.83 | - | 2 | 4 minutes | 1,000 | 61 |" in text
    assert "| second | 17.00 ± 3.61 | 3.50 ± 0.50 | 3 | 4 minutes | 1,000 | 61 |" in text
    assert (tmp_path / "plot.png").stat().st_size > 5000
    done["third"] = results(None)  # such as AP of large objects where there are none
    write_table(cells, done, cfg)
    assert "| third | - | - | 1 |" in (tmp_path / "table.md").read_text("utf-8")
