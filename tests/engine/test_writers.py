"""Where metrics go: the terminal's line, TensorBoard and W&B, present, missing or broken."""

import sys
import time
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine.hooks import IterationTimer
from helpers.common import read_metrics
from helpers.linear import linear_trainer

from lomar_det.config.settings import RunSettings
from lomar_det.engine.hooks import Throughput
from lomar_det.engine.writers import writer_hook
from lomar_det.errors import UserError


class FakeWandb:
    """What we use of the real module, noted down."""

    def __init__(self):
        self.starts, self.lines = [], []

    def init(self, **settings):
        self.starts.append(settings)
        return SimpleNamespace(
            id=settings["id"] or "abc123",
            define_metric=lambda *_, **__: None,
            log=self.lines.append,
            finish=lambda: self.lines.append("finished"),
        )


def train(folder, start=0, stop=6, wandb=None, data_time=0.0):
    def batches():
        for _ in range(start, stop):
            time.sleep(data_time)
            yield torch.ones(2, 3)

    settings = RunSettings(output_dir=str(folder), log_period=2, wandb=wandb)
    trainer = linear_trainer(batches(), gather_metric_period=2)
    writer = writer_hook(settings, stop)
    trainer.register_hooks([IterationTimer(), Throughput(2, 2), writer])
    trainer.train(start, stop)
    return read_metrics(folder)


def test_speed_and_waiting_for_data(tmp_path, caplog):
    caplog.set_level("INFO")
    slow = train(tmp_path, data_time=0.05)[-1]
    assert 0.5 < slow["data_wait"] <= 1 and 0 < slow["img_per_s"] < 40  # 2 images in 50 ms
    shown = f"img/s: {slow['img_per_s']:.4g}  data_wait: {slow['data_wait']:.0%}"
    assert shown in caplog.text
    assert list(tmp_path.glob("events.out.tfevents.*"))


@pytest.mark.parametrize("broken", ["missing", "failing"])
def test_tensorboard_is_not_needed(tmp_path, lomar_log, monkeypatch, broken):
    if broken == "missing":
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    else:
        writer = "torch.utils.tensorboard.SummaryWriter.add_scalar"
        monkeypatch.setattr(writer, lambda *_, **__: 1 / 0)
    lines = train(tmp_path)
    assert [line["iteration"] for line in lines] == [1, 3, 5]
    assert lomar_log.text.count("TensorboardXWriter") == 1


def test_wandb_continues_the_same_run(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    options = {"project": "lomar", "name": "a"}
    train(tmp_path, stop=4, wandb=options)
    train(tmp_path, start=2, wandb=options)
    assert [start["id"] for start in wandb.starts] == [None, "abc123"]
    assert wandb.starts[0]["project"] == "lomar" and wandb.starts[0]["config"]["log_period"] == 2
    iterations = [line if line == "finished" else line["iteration"] for line in wandb.lines]
    assert iterations == [1, 3, "finished", 3, 5, "finished"]
    assert wandb.lines[0]["total_loss"] > 0


def test_a_failing_wandb_does_not_end_the_run(tmp_path, monkeypatch, lomar_log):
    wandb = FakeWandb()
    wandb.lines = SimpleNamespace(append=lambda _: 1 / 0)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert len(train(tmp_path, wandb={"project": "lomar"})) == 3
    assert lomar_log.text.count("WandbWriter") == 1


def test_wandb_asked_for_in_vain(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="train.wandb.*pip install"):
        train(tmp_path, wandb={"project": "lomar"})
    assert not list(tmp_path.iterdir())
