"""What the tests of ablations share."""

import sys

import pytest
from helpers.ablations import CONFIG, FINETUNE
from helpers.common import ROOT, TINY_PRETRAIN, tool_args

sys.path.insert(0, str(ROOT / "projects" / "ablation"))

from ablation import main  # noqa: E402
from lomar_pretrain.runs import pretrain as engine


@pytest.fixture
def ablate(tmp_path, green_and_red, monkeypatch):
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
        opts = [f"downstream.data={green_and_red}", *opts]  # the first may be overridden
        opts = [f"pretrain.data={green_and_red}", f"run.output_dir={tmp_path / output}", *opts]
        return start(tool_args(path, *opts))

    return run
