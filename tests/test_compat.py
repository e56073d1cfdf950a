"""Without detectron2, or with one too old: what works, and what the message says."""

import subprocess
import sys

import pytest
from helpers.common import tool_environment

pytestmark = pytest.mark.run

NO_DETECTRON2 = """
import sys

import pytest
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "detectron2":
            raise ModuleNotFoundError("No module named 'detectron2'", name=name)
sys.meta_path.insert(0, Blocker())
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda n, p=None: None if n == "detectron2" else find_spec(n, p)
"""
TOO_OLD = """
import sys, types
import detectron2.modeling
del detectron2.modeling.ViT
"""


def run(code):
    result = subprocess.run(
        [sys.executable, "-c", code], env=tool_environment(), capture_output=True, text=True
    )
    return result.returncode, result.stdout, result.stderr


def test_models_and_data_work_without_detectron2():
    code, out, err = run(
        NO_DETECTRON2
        + """
import torch, lomar_pretrain, lomar_pretrain.data, lomar_pretrain.data.class_folders
import lomar_pretrain.figures.reconstruction
from lomar_pretrain import LoMaR
loss = LoMaR(32, 4, 16, 1, 2, window_size=3)(torch.randn(1, 3, 32, 32)).loss
print("loss", bool(loss.isfinite()), "detectron2" in sys.modules)
"""
    )
    assert code == 0 and "loss True False" in out
    assert "detectron2" not in err


def test_plugin_says_what_to_do_without_detectron2():
    code, out, err = run(NO_DETECTRON2 + "import lomar_det; print('imported')")
    assert code == 0 and "imported" in out
    assert "detectron2 is not installed" in err and "pip install" in err
    parts = (
        "lomar_det.modeling",
        "lomar_det.checkpoint",
        "lomar_det.data; lomar_det.data.register_coco",
        "lomar_det.engine",
        "lomar_det.detection",
        "lomar_pretrain.runs.pretrain",
    )
    for part in parts:
        code, _, err = run(NO_DETECTRON2 + f"import {part}")
        last = err.strip().splitlines()[-1]
        assert code == 1 and last.startswith("ImportError") and "pip install" in last


def test_plugin_says_what_to_do_with_one_too_old():
    code, _, err = run(TOO_OLD + "import lomar_det.modeling")
    last = err.strip().splitlines()[-1]
    assert code == 1 and "too old" in last and "pip install" in last


def test_import_registers_the_backbones():
    code, out, _ = run(
        "import lomar_det; from detectron2.modeling import BACKBONE_REGISTRY as R; "
        "print('build_lomar_vitdet_backbone' in R, lomar_det.modeling.LoMaRViT.__name__)"
    )
    assert code == 0 and "True LoMaRViT" in out
