"""Ablations: a stopped grid continues to the same table, and mistakes are named."""

import csv
import json
import os
import signal

import numpy as np
import pytest
import torch
from common import ROOT, TINY_DETECTOR, TINY_PRETRAIN, data_settings, tool_args
from PIL import Image

from lomar_det.engine import load_plain
from lomar_det.engine.config import load_config
from lomar_det.engine.hooks import SeedEachStep
from lomar_det.errors import UserError
from lomar_pretrain import engine
from lomar_pretrain.ablation import main
from lomar_pretrain.ablation_plan import plan_cells

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

    def run(cells, output, *opts, stage=None):
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
        return main(tool_args(path, *opts))

    return run


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
    knn = {"config": "linear_lomar_vit_tiny", "metric": "classification/knn_top1"}
    knn["overrides"] = ["train.knn=3"]
    cells = {"lomar": {}, "lomar_again": {}, "random": {"pretrain": None}, "left_out": None}
    probe = [s.replace("model.", "model.encoder.") for s in FINETUNE]
    for cell in list(cells.values())[:-1]:
        cell["downstream"] = knn
    stage = {"downstream": probe}
    opts = ["budget.images=8", "run.seeds=[0,1]"]
    first, second, random, *others = ablate(cells, "out", *opts, stage=stage)
    assert first["value"] == second["value"] and others[0]["seed"] == 1
    assert first["pretrain"] == second["pretrain"] and random["pretrain"] is None
    folders = {path.parent.parent.name for path in (tmp_path / "out").glob("*/seed0/pretrain")}
    assert folders == {"lomar"}
    values = first["value"], others[0]["value"]
    row = table(tmp_path / "out")[0]
    assert float(row["mean"]) == pytest.approx(sum(values) / 2, abs=0.01)
    assert float(row["std"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5, abs=0.01)
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| random |" in text and "CPU cores" in text and str(tmp_path) not in text
    assert (tmp_path / "out" / "plot.png").stat().st_size > 0


def test_changed_settings_of_a_finished_cell_are_refused(ablate, tmp_path, monkeypatch):
    cells = {"random": {"pretrain": None}}
    record = ablate(cells, "out")[0]
    assert ablate(cells, "out", "budget.images=100") == [record]  # not this cell's
    stage = {"downstream": [*FINETUNE, "data.num_workers=1"]}
    assert ablate(cells, "out", stage=stage) == [record]
    stage = {"downstream": [*FINETUNE, "train.base_lr=0.1"]}
    with pytest.raises(UserError, match="random/seed0.*train.base_lr was 0.05, and is 0.1 now.*de"):
        ablate(cells, "out", stage=stage)
    with pytest.raises(UserError, match="metric was classification/top1"):
        ablate(cells, "out", "downstream.metric=classification/top5")
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
    budget = ["budget.images=null", "budget.minutes=0.05"]
    records = ablate(cells, "out", *budget)
    assert [record["pretrain"]["images"] for record in records] == [12 * 4, 6 * 4]
    calibration = json.loads((tmp_path / "out" / "slow" / "calibration.json").read_text())
    assert (calibration["seconds_per_step"], calibration["steps"]) == (0.5, 2)
    assert not (tmp_path / "out" / "slow" / "calibration").exists()
    monkeypatch.setattr(engine, "read_metrics", None)
    assert ablate(cells, "out", *budget) == records


def test_a_detector_downstream(ablate, drawn_set, monkeypatch):
    stage = {"stage": "detection", "recipe": "mask_rcnn_lomar_vit_tiny", "metric": "bbox/AP50"}
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
    assert record["downstream"]["results"]["segm"].keys() >= {"AP", "AP50"}
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
        ({"a": {}}, ["pretrain.overrides=3"], "cell a: pretrain.overrides=3 must be a list"),
        ({"a": {"pretrain": {"config": "lomar_vit_x"}}}, [], "cell a: .*lomar_vit_x; recipes: "),
        ({"a": {"downstream": {"overrides": ["model.dpeth=1"]}}}, [], "cell a: .*'model.dpeth'"),
        ({"a": {}}, ["budget.epochs=3"], "epochs and images: give one of"),
        ({"a": {}}, ["budget.images=null"], "nothing: give one of"),
        ({"a": {}}, ["budget.images=-1"], "budget.images=-1 must be"),
        ({"a": {}}, ["run.seeds=3"], r"run.seeds=3 must be a list"),
        ({"a": {}}, ["pretrain.data='???'"], "cell a: pretrain.data is not set"),
        ({"a": {}}, ["pretrain.data=gone"], "cell a: gone"),
        ({"a": {"downstream": {"metric": "bbox/AP"}}}, [], "cell a: no metric bbox/AP.*top1"),
    ],
)
def test_mistakes_are_named(ablate, tmp_path, cells, opts, message):
    with pytest.raises(UserError, match=message):
        ablate(cells, "out", *opts)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_recipes_plan_and_pair_positions(path, tmp_path):
    """Every cell's downstream model has the positions that it was pretrained with."""
    cfg = load_config(path, ["pretrain.data=IMAGES", f"run.output_dir={tmp_path}"])
    cfg.downstream.data = None
    cfg.budget.update(epochs=30, minutes=None)  # minutes would be measured
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
    if path.stem.startswith("table1"):
        methods = {c.name: c.pretrain.load().model._target_.__name__ for c in cells[1:]}
        assert {method for name, method in methods.items() if "mae" in name} == {"MAE"}
        assert {method for name, method in methods.items() if "lomar" in name} == {"LoMaR"}
