"""What several tests of pretraining share."""

import pytest
from ablations import CONFIG, FINETUNE
from common import TINY_PRETRAIN, draw_colours, tool_args

from lomar_pretrain import engine
from lomar_pretrain.ablation import main


@pytest.fixture
def green_and_red(tmp_path):
    """Two classes, noise of one colour each."""
    return draw_colours(tmp_path / "colours", ("green", "red"), 8)


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
