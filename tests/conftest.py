"""Fixtures of several tests."""

import json
import logging
from pathlib import Path

import pytest
import torch
from helpers.common import ROOT, draw_colours, draw_instances

LOGGERS = ("detectron2", "fvcore", "lomar_det", "lomar_pretrain")


@pytest.fixture(autouse=True)
def _independent():
    """Seeded, and without the log handlers of the test before, whose streams are closed."""
    torch.manual_seed(0)
    yield
    for logger in map(logging.getLogger, LOGGERS):
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()


@pytest.fixture
def shared_data() -> Path:
    """The developers' real data sets; users do not have them."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there (development and CI only)")
    return folder


@pytest.fixture
def drawn_set(tmp_path) -> tuple[Path, Path]:
    """(annotation file, image folder) of a small drawn instance segmentation set."""
    images = tmp_path / "images"
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(draw_instances(images)))
    return annotations, images


@pytest.fixture
def lomar_log(caplog, monkeypatch):
    """Captures our loggers also after a tool has set them up not to propagate; each record once."""
    loggers = [logging.getLogger(name) for name in LOGGERS if name.startswith("lomar")]
    for logger in loggers:
        monkeypatch.setattr(logger, "propagate", False)
        logger.addHandler(caplog.handler)
        logger.setLevel(logging.INFO)
    yield caplog
    for logger in loggers:
        logger.removeHandler(caplog.handler)


@pytest.fixture
def green_and_red(tmp_path):
    """Two classes, noise of one colour each."""
    return draw_colours(tmp_path / "colours", ("green", "red"), 8)
