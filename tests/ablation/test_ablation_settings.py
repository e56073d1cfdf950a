"""What an ablation's config may say: mistakes are named, recipes are right."""

import pytest
from ablation_plan import plan_cells
from helpers.common import ROOT

from lomar_det.config.lazy import load_config
from lomar_det.errors import UserError

CONFIGS = sorted((ROOT / "configs" / "ablation").glob("*.py"))


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


def test_nothing_for_an_option_is_null_in_a_run_too(ablate, green_and_red):
    data = f"pretrain.data={{path: [{green_and_red}], image_root: null}}"
    cells = ablate({"a": {}}, "out", data, start=lambda args: plan_cells(load(args)))
    assert cells[0].pretrain.load().data.image_root is None


def load(args):
    return load_config(args.config_file, args.opts)


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
