"""Configs that are of another stage, or no configs at all: one clear error for every tool."""

import builtins

import pytest
from helpers.common import ROOT, tool_args

from lomar_det.config.lazy import load_config
from lomar_det.detection import train as detection
from lomar_det.detection.predictor import Predictor
from lomar_det.errors import UserError
from lomar_pretrain.runs import finetune
from lomar_pretrain.runs import pretrain as pretraining

PRETRAIN = "pretrain/lomar_vit_tiny.py"
DETECT = "custom/mask_rcnn_lomar_vit_tiny.py"
CLASSIFY = "imagenet/finetune_lomar_vit_tiny.py"


@pytest.mark.parametrize(
    ("tool", "config", "folder"),
    [
        (pretraining, DETECT, "pretrain"),
        (pretraining, CLASSIFY, "pretrain"),
        (finetune, PRETRAIN, "imagenet"),
        (detection, PRETRAIN, "coco"),
    ],
)
def test_a_config_of_another_stage(tmp_path, monkeypatch, tool, config, folder):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{config}.* configs/{folder}"):
        tool.main(tool_args(config))
    assert not list(tmp_path.iterdir())


def test_prediction_needs_a_detector():
    with pytest.raises(UserError, match="model.roi_heads.* configs/coco"):
        Predictor(ROOT / "configs" / PRETRAIN, "detector.pth")


@pytest.mark.parametrize("value", ["${train.nope}", "${train.epochs}"])
def test_a_reference_to_nothing(value):
    with pytest.raises(UserError, match=PRETRAIN):
        load_config(ROOT / "configs" / PRETRAIN, [f"train.epochs={value}"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import gone", "gone"),
        ("model = dict(depth=1 / 0)", "ZeroDivisionError"),
        ("from ..common.gone import model", "common/gone.py"),
    ],
)
def test_a_config_that_fails(tmp_path, text, words):
    (tmp_path / "mine.py").write_text(text)
    before = builtins.__import__
    with pytest.raises(UserError, match=f"mine.py.*{words}"):
        load_config(tmp_path / "mine.py", [])
    assert builtins.__import__ is before
