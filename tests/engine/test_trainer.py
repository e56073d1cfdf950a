"""The trainer: accumulation equals the large batch, precision, schedules, signals."""

import math
import os
import signal

import pytest
import torch
from torch import nn

from lomar_det.engine import (
    Checkpointer,
    StopOnSignal,
    Trainer,
    resolve_precision,
    step_schedule,
    warmup_cosine_schedule,
)
from lomar_det.errors import UserError


def make_trainer(batches, **settings):
    torch.manual_seed(1)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    losses = lambda model, x: {"loss": model(x).square().mean()}  # noqa: E731
    return Trainer(model, iter(batches), optimizer, losses, **settings)


def test_accumulation_equals_the_large_batch():
    data = torch.randn(5, 8, 3)
    large = make_trainer(list(data))
    small = make_trainer([part for batch in data for part in batch.split(2)], accumulation_steps=4)
    for trainer in (large, small):
        trainer.train(0, 5)
    torch.testing.assert_close(small.model.weight, large.model.weight)


def test_gradients_are_clipped():
    trainer = make_trainer([torch.full((2, 3), 100.0)], clip_grad_norm=0.5)
    trainer.train(0, 1)
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in trainer.model.parameters()))
    assert norm == pytest.approx(0.5, rel=1e-4)


def test_non_finite_loss_stops_before_the_weights_are_spoilt():
    trainer = make_trainer([torch.ones(2, 3), torch.full((2, 3), math.inf)])
    with pytest.raises(UserError, match="(?s)diverged in iteration 1.*--resume"):
        trainer.train(0, 2)
    assert trainer.model.weight.isfinite().all()


def test_a_full_gpu_is_one_clear_error():
    trainer = make_trainer([torch.ones(2, 3)])

    def losses(model, x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer.compute_losses = losses
    with pytest.raises(UserError, match="lower train.max_batch_per_gpu"):
        trainer.train(0, 1)


def test_bf16_autocast_works_on_a_cpu():
    seen = []

    def losses(model, x):
        out = model(x)
        seen.append(out.dtype)
        return {"loss": out.float().square().mean()}

    trainer = make_trainer([torch.ones(2, 3)], dtype=torch.bfloat16)
    trainer.compute_losses = losses
    trainer.train(0, 1)
    assert seen == [torch.bfloat16] and trainer.model.weight.dtype == torch.float32


def test_precision_names():
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) == torch.float32
    assert resolve_precision("bf16", cpu) == torch.bfloat16
    for name in ("fp16", "half"):
        with pytest.raises(UserError, match="train.precision"):
            resolve_precision(name, cpu)


@pytest.mark.parametrize("epochs, warmup", [(1600, 40), (800, 20), (400, 10), (10, 0)])
def test_cosine_schedule_is_the_closed_formula(epochs, warmup):
    schedule = warmup_cosine_schedule(warmup / epochs)
    steps = 1000
    for step in range(0, steps):
        epoch = step / steps * epochs
        if epoch < warmup:
            expected = epoch / warmup
        else:
            progress = (epoch - warmup) / (epochs - warmup)
            expected = 0.5 * (1 + math.cos(math.pi * progress))
        assert schedule(step / steps) == pytest.approx(expected, abs=1e-9)


def test_step_schedule_is_vitdets():
    schedule = step_schedule(46094)
    at = lambda iteration: schedule(iteration / 46094)  # noqa: E731
    assert at(0) == pytest.approx(0.001) and at(125) == pytest.approx(0.5, abs=0.01)
    assert at(250) == at(40971) == 1
    assert at(40974) == pytest.approx(0.1) and at(44386) == pytest.approx(0.1)
    assert at(44388) == pytest.approx(0.01)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_signal_writes_a_checkpoint_and_exits(tmp_path, number, code):
    def batches():
        for step in range(10):
            if step == 3:
                os.kill(os.getpid(), number)
            yield torch.ones(2, 3)

    trainer = make_trainer(batches())
    checkpointer = Checkpointer(trainer.model, str(tmp_path), trainer=trainer)
    trainer.register_hooks([StopOnSignal(checkpointer)])
    with pytest.raises(SystemExit) as stop:
        trainer.train(0, 10)
    assert stop.value.code == code
    again = make_trainer([])
    Checkpointer(again.model, str(tmp_path), trainer=again).resume_or_load("", resume=True)
    assert again.iter == 3 and torch.equal(again.model.weight, trainer.model.weight)
    assert signal.getsignal(number) == signal.SIG_DFL
