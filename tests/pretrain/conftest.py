"""What several tests of pretraining share."""

import numpy as np
import pytest
from ablations import CONFIG, FINETUNE
from common import TINY_PRETRAIN, tool_args
from PIL import Image

from lomar_pretrain import engine
from lomar_pretrain.ablation import main


@pytest.fixture
def green_and_red(tmp_path):
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
