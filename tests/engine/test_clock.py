"""`train.max_minutes`: steps, learning rates, resume and printing of a run by the clock."""

import os
import signal
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from helpers.common import (
    TINY_CLASSIFIER,
    TINY_DETECTOR,
    TINY_PRETRAIN,
    data_settings,
    read_metrics,
    tool_args,
)
from helpers.linear import SCHEDULE, dropped_squares, fit_linear

from lomar_det.checkpoint.serialization import load_plain
from lomar_det.detection import train as detection
from lomar_det.engine import hooks
from lomar_det.engine.schedules import BY_THE_CLOCK
from lomar_det.engine.writers import MetricPrinter
from lomar_det.errors import UserError
from lomar_pretrain.runs import finetune
from lomar_pretrain.runs import pretrain as pretraining

SECONDS = 6  # of a step
# Steps 0 to 9 use up the minute; one more has all of it behind it, and the schedule's last rate.
STEPS = 11
RATES = [0.1 * SCHEDULE(SECONDS * i / 60) for i in range(STEPS)]


@pytest.fixture
def now(monkeypatch):
    """A clock that only `train` and what it calls move on, in ``now.seconds``."""
    clock = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(hooks, "time", SimpleNamespace(perf_counter=lambda: clock.seconds))
    return clock


def train(folder, now, minutes=1.0, stop=None, **options):
    """Each step takes `SECONDS`; in step ``stop`` a SIGTERM comes."""
    steps = []

    def compute_losses(model, x):
        now.seconds += SECONDS
        steps.append(x)
        if len(steps) - 1 == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return dropped_squares(model, x)

    options["settings"] = {"output_dir": str(folder), "max_minutes": minutes}
    options["plan"] = {"max_iter": BY_THE_CLOCK} | options.get("plan", {})
    return fit_linear(folder, compute_losses=compute_losses, **options), len(steps)


def rates(folder):
    return [line["lr"] for line in read_metrics(folder) if "lr" in line]


def time_used(folder, name="model_final"):
    return load_plain(folder / f"{name}.pth")["trainer"]["hooks"]["Clock"]["seconds"]


def test_a_run_ends_with_its_time_and_its_rates_follow_it(tmp_path, now):
    fitted, steps = train(tmp_path, now)
    assert steps == fitted.iterations == STEPS and fitted.trained
    assert rates(tmp_path) == pytest.approx(RATES, abs=1e-12) and RATES[-1] == 0 < RATES[-2]
    assert time_used(tmp_path) == STEPS * SECONDS
    used = [line["minutes_used"] for line in read_metrics(tmp_path)]
    assert used == pytest.approx([SECONDS * (i + 1) / 60 for i in range(STEPS)])


@pytest.mark.parametrize("stop", [0, 4, STEPS - 2])
def test_a_run_that_is_stopped_does_the_steps_that_are_left(tmp_path, now, stop):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(whole, now)
    with pytest.raises(SystemExit):
        train(cut, now, stop=stop)
    assert time_used(cut, f"model_{stop:07d}") == (stop + 1) * SECONDS
    now.seconds += 12345  # nobody trains meanwhile
    fitted, steps = train(cut, now, resume=True)
    assert steps == STEPS - stop - 1 and fitted.iterations == STEPS
    assert rates(cut) == rates(whole)
    first, second = (load_plain(folder / "model_final.pth") for folder in (whole, cut))
    assert torch.equal(first["model"]["weight"], second["model"]["weight"])


def test_a_finished_run_trains_no_more_unless_it_gets_more_minutes(tmp_path, now):
    trained, _ = train(tmp_path, now)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    fitted, steps = train(tmp_path, now, resume=True)
    assert (fitted.trained, fitted.iterations, steps) == (False, STEPS, 0)
    assert torch.equal(fitted.model.weight, trained.model.weight)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    fitted, steps = train(tmp_path, now, minutes=2.0, resume=True)
    # 66 of 120 seconds are used: nine steps more, and the last one
    assert steps == 10 and fitted.trained and fitted.iterations == STEPS + steps
    assert rates(tmp_path)[STEPS:] == pytest.approx(
        [0.1 * SCHEDULE(min((66 + SECONDS * i) / 120, 1)) for i in range(steps)], abs=1e-12
    )


@pytest.mark.parametrize("first, then", [(1.0, None), (None, 1.0)], ids=["clock", "steps"])
def test_a_run_keeps_what_measures_its_length(tmp_path, now, first, then):
    """The share of it that is done would be another one otherwise."""

    def run(minutes, **options):
        plan = {"max_iter": BY_THE_CLOCK if minutes else 6}
        return train(tmp_path, now, minutes, plan=plan, **options)

    with pytest.raises(SystemExit):
        run(first, stop=3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError):
        run(then, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    _, steps = run(first, resume=True)
    assert steps == (STEPS if first else 6) - 4


def test_only_steps_count(tmp_path, now):
    """Not evaluation, other hooks, checkpoints, and what lies between the steps."""
    evaluated = []

    class Slow(HookBase):
        def after_step(self):
            now.seconds += 100

    def evaluate(model):
        now.seconds += 1000
        evaluated.append(model)
        return {"task": {"score": 1.0}}

    plan = {"eval_period": 4, "checkpoint_period": 3}
    fitted, steps = train(tmp_path, now, plan=plan, evaluate=evaluate, hooks=[Slow()])
    assert steps == STEPS and len(evaluated) == 3 and fitted.results
    assert time_used(tmp_path) == STEPS * SECONDS
    assert rates(tmp_path) == pytest.approx(RATES, abs=1e-12)


def test_the_terminal_shows_the_time_that_is_left():
    printer = MetricPrinter(BY_THE_CLOCK, max_minutes=90)
    with EventStorage() as storage:
        for used, left in ((0.5, timedelta(minutes=89, seconds=30)), (91, timedelta())):
            storage.put_scalar("minutes_used", used)
            assert printer._get_eta(storage) == str(left)


STAGES = {
    "pretraining": (pretraining.main, "pretrain/lomar_vit_tiny.py", TINY_PRETRAIN),
    "fine-tuning": (finetune.main, "imagenet/finetune_lomar_vit_tiny.py", TINY_CLASSIFIER),
    "detection": (detection.main, "custom/mask_rcnn_lomar_vit_tiny.py", TINY_DETECTOR),
}


@pytest.mark.run
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_ends_by_the_clock(drawn_set, green_and_red, tmp_path, stage):
    main, config, settings = STAGES[stage]
    data = {
        "pretraining": [f"data.path={drawn_set[1]}"],
        "fine-tuning": [f"data.path={green_and_red}", "train.eval_epochs=1000"],
        "detection": data_settings(*drawn_set),
    }
    opts = [f"train.output_dir={tmp_path / 'out'}", "train.max_minutes=0.02"]
    results = main(tool_args(config, *settings, *data[stage], *opts))
    lines = [line for line in read_metrics(tmp_path / "out") if "minutes_used" in line]
    is_over = [line["minutes_used"] >= 0.02 for line in lines]
    assert is_over == [False] * (len(lines) - 2) + [True, True]
    assert lines[-1]["lr"] == min(line["lr"] for line in lines[1:])
    final = load_plain(tmp_path / "out" / "model_final.pth")
    assert final["iteration"] == lines[-1]["iteration"] == len(lines) - 1
    if stage == "pretraining":  # six images in batches of four: an epoch is one iteration
        assert load_plain(results)["meta"]["epochs"] == len(lines)
    else:
        assert results.keys() & {"bbox", "classification"}
