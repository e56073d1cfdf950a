"""Settings: one field each, from which configs, yaml and the page in the docs are made."""

import runpy

import pytest
from helpers.common import ROOT, TINY_DETECTOR, TINY_PRETRAIN
from omegaconf import OmegaConf
from omegaconf.errors import ReadonlyConfigError

from lomar_det.config.lazy import load_config, with_settings
from lomar_det.config.settings import DetectionSettings, OwnData
from lomar_det.errors import UserError
from lomar_pretrain.runs.settings import PretrainSettings

PRETRAIN = ROOT / "configs" / "pretrain" / "lomar_vit_tiny.py"
DETECT = ROOT / "configs" / "custom" / "mask_rcnn_lomar_vit_tiny.py"


def test_the_page_in_the_docs_is_what_the_fields_say():
    page = runpy.run_path(str(ROOT / "docs" / "write_settings.py"))["page"]()
    assert page == (ROOT / "docs" / "settings.md").read_text(), "run `make settings`"


@pytest.mark.parametrize(
    ("path", "overrides"), [(PRETRAIN, TINY_PRETRAIN), (DETECT, TINY_DETECTOR)], ids=["lomar", "d2"]
)
def test_a_loaded_config_is_frozen(path, overrides):
    cfg = load_config(path, overrides)
    for change in (
        lambda: setattr(cfg.train, "seed", 3),
        lambda: setattr(cfg, "train", {}),
        lambda: cfg.model.update(depth=1),
        lambda: OmegaConf.update(cfg, "train.seed", 3),
    ):
        with pytest.raises(ReadonlyConfigError):
            change()
    other = with_settings(cfg, {"train.seed": 3})
    assert (other.train.seed, cfg.train.seed) == (3, 0)
    with pytest.raises(ReadonlyConfigError):
        other.train.seed = 4


def test_a_section_is_read_with_its_sections_inside():
    cfg = load_config(DETECT, ["train.checkpointer.period=7", "train.output_dir=~/x"])
    settings = DetectionSettings.read(cfg, "train")
    assert settings.checkpointer.period == 7 and "~" not in settings.output_dir
    assert settings.ema_decay is None and settings.ddp["broadcast_buffers"] is False


def test_what_is_missing_unknown_or_out_of_range_is_named():
    with pytest.raises(UserError, match="data.train.annotations"):
        OwnData.read(load_config(DETECT, []), "data")
    with pytest.raises(UserError, match="train.checkpointer.period=0"):
        DetectionSettings.read(load_config(DETECT, ["train.checkpointer.period=0"]), "train")
    with pytest.raises(UserError, match="train.*'epoch'"):
        PretrainSettings.read(load_config(PRETRAIN, ["+train.epoch=3"]), "train")
