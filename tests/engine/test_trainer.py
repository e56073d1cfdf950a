"""The trainer: accumulation, precision, averages, skipped steps, schedules, signals."""

import copy
import math
import multiprocessing
import os
import signal

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from helpers.common import free_port
from helpers.linear import linear_trainer, squares
from torch import nn

from lomar_det.engine import (
    Checkpointer,
    StopOnDivergence,
    StopOnSignal,
    Trainer,
    resolve_precision,
    step_schedule,
    warmup_cosine_schedule,
)
from lomar_det.errors import UserError


def test_accumulation_equals_the_large_batch():
    data = torch.randn(5, 8, 3)
    large = linear_trainer(list(data))
    small = linear_trainer(
        [part for batch in data for part in batch.split(2)], accumulation_steps=4
    )
    for trainer in (large, small):
        trainer.train(0, 5)
    torch.testing.assert_close(small.model.weight, large.model.weight)


def test_gradients_are_clipped():
    trainer = linear_trainer([torch.full((2, 3), 100.0)], clip_grad_norm=0.5)
    trainer.train(0, 1)
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in trainer.model.parameters()))
    assert norm == pytest.approx(0.5, rel=1e-4)


NAN = torch.full((2, 3), math.nan)
GOOD = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(3))


def state_of(trainer):
    """Copies of everything that a skipped step must leave alone."""
    parts = [trainer.model.state_dict(), trainer.optimizer.state_dict()["state"]]
    parts.append(trainer.ema.module.state_dict() if trainer.ema else {})
    return copy.deepcopy(parts)


def make_fused(trainer):
    groups = trainer.optimizer.param_groups
    trainer.optimizer = torch.optim.AdamW(groups[0]["params"], lr=0.1, fused=True)
    return trainer


@pytest.mark.parametrize("ema_decay, fused", [(None, False), (0.9, False), (None, True)])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing(lomar_log, ema_decay, fused, accumulation_steps):
    batches = list(GOOD[:6])
    batches[4] = NAN  # the whole of a step, or half of it
    skipped = 4 // accumulation_steps
    settings = dict(ema_decay=ema_decay, accumulation_steps=accumulation_steps)
    trainer = linear_trainer(batches, **settings, gather_metric_period=100)
    if fused:
        make_fused(trainer)
    states = []

    class Watch(HookBase):
        def after_step(self):
            states.append(state_of(trainer))
            self.trainer.storage.put_scalar("seen", self.trainer.iter)

    trainer.register_hooks([Watch()])
    trainer.train(0, 6 // accumulation_steps)
    before, after = states[skipped - 1 : skipped + 1]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(before, states[skipped - 2], rtol=0, atol=0)
    assert f"Iteration {skipped}" in lomar_log.text
    losses = trainer.storage.history("total_loss").values()
    steps = set(range(6 // accumulation_steps)) - {skipped}
    assert [iteration for _, iteration in losses] == sorted(steps)
    assert all(math.isfinite(loss) for loss, _ in losses)


def test_a_forward_pass_that_gives_up_is_skipped_and_reads_its_data(lomar_log):
    """detectron2's proposals raise FloatingPointError when boxes are infinite."""
    seen = []

    def losses(model, x):
        seen.append(x)
        if len(seen) == 3:  # the first half of step 1
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")
        return {"loss": model(x).square().mean()}

    trainer = linear_trainer(GOOD, accumulation_steps=2, ema_decay=0.9)
    trainer.compute_losses = losses
    trainer.train(0, 4)
    assert len(seen) == 8 and torch.equal(seen[4], GOOD[4])
    assert "Iteration 1" in lomar_log.text and "Predicted boxes" in lomar_log.text
    assert trainer.optimizer.state_dict()["state"][0]["step"] == 3


@pytest.mark.parametrize("fused", [False, True])
def test_too_many_skipped_steps_in_a_row_end_the_run(tmp_path, fused):
    batches = [GOOD[0], NAN, NAN, GOOD[1], NAN, NAN, NAN, NAN, NAN]
    trainer = linear_trainer(batches, gather_metric_period=100)
    if fused:
        make_fused(trainer)
    checkpointer = Checkpointer(trainer.model, str(tmp_path), trainer=trainer)
    checkpointer.save("model_0000003", iteration=3)
    trainer.register_hooks([StopOnDivergence(checkpointer, max_skipped_steps=2)])
    with pytest.raises(UserError, match="train.max_skipped_steps=2.*model_0000003.pth.*--resume"):
        trainer.train(0, 9)
    assert trainer.iter == (7 if fused else 6)  # outcomes are read a step later
    assert trainer.model.weight.isfinite().all()


def test_an_error_of_the_last_step_is_what_is_told():
    """Not what fails after it, and nothing is evaluated for hours before it is told."""
    called = []

    class FullDisk(HookBase):
        def after_step(self):
            if self.trainer.iter == 1:
                raise UserError("the disk is full")

        def after_train(self):
            called.append("closed")
            raise ZeroDivisionError

    trainer = linear_trainer(list(GOOD))
    trainer.register_hooks(
        [FullDisk(), EvalHook(0, lambda: called.append("evaluated")), FullDisk()]
    )
    with pytest.raises(UserError, match="disk is full"):
        trainer.train(0, 2)
    assert called == ["closed", "closed"]


def test_gradients_alone_can_be_the_reason():
    def losses(model, x):  # d sqrt(x) / dx at 0
        return {"loss": (model(x) * 0).abs().sqrt().sum()}

    trainer = linear_trainer(GOOD[:1])
    trainer.compute_losses = losses
    before = state_of(trainer)
    trainer.train(0, 1)
    torch.testing.assert_close(state_of(trainer), before)
    assert trainer.skipped_in_a_row == 1


def test_fp16s_own_overflows_halve_the_scale_without_a_warning(lomar_log):
    trainer = linear_trainer(GOOD, dtype=torch.float16, ema_decay=0.9)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    trainer.model.weight.data.fill_(50)  # gradients of more than two overflow
    before = state_of(trainer)
    trainer.train(0, 1)
    torch.testing.assert_close(state_of(trainer), before)
    assert trainer.grad_scaler.get_scale() == 2.0**126 and trainer.skipped_in_a_row == 1
    assert "Iteration 0" not in lomar_log.text
    again = linear_trainer(GOOD[1:], dtype=torch.float16, ema_decay=0.9)
    again.grad_scaler = torch.amp.GradScaler("cpu")
    again.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert again.grad_scaler.get_scale() == 2.0**126
    again.compute_losses = lambda model, x: {"loss": model(x).sum() * math.nan}
    again.train(0, 1)
    assert "Iteration 0" in lomar_log.text


def test_the_average_follows_the_closed_formula():
    trainer = linear_trainer(GOOD, ema_decay=0.5)
    weights = []

    class Watch(HookBase):
        def after_step(self):
            weights.append(trainer.model.weight.detach().clone())

    trainer.register_hooks([Watch()])
    trainer.train(0, 8)
    average = weights[0]  # not the initial weights
    for step, weight in enumerate(weights[1:], start=1):
        decay = min(0.5, 1 - (1 + step) ** -0.75)
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(trainer.eval_model.weight, average)


def test_losses_read_late_are_the_same():
    """With a fused optimizer the host reads each step's losses one step later."""
    histories = []
    for period in (1, 3, 100):
        trainer = make_fused(linear_trainer(GOOD, gather_metric_period=period))
        trainer.train(0, 8)
        histories.append(trainer.storage.history("total_loss").values())
    assert histories[0] == histories[1] == histories[2] and len(histories[0]) == 8


def one_of_two(rank, port, results):
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    batches = list(GOOD)
    if rank == 1:
        batches[2] = batches[5] = batches[6] = NAN
    trainer = linear_trainer(batches, ema_decay=0.9)
    # no DistributedDataParallel, which would spread the NaN: they must agree by themselves
    trainer.register_hooks([StopOnDivergence(Checkpointer(trainer.model, ""), 1)])
    try:
        trainer.train(0, 8)
    except UserError:
        steps = trainer.optimizer.state_dict()["state"][0]["step"].item()
        losses = trainer.storage.history("total_loss").values()
        results.put((trainer.iter, steps, losses))


@pytest.mark.skipif(torch.cuda.is_available(), reason="autograd with CUDA cannot be forked")
def test_all_processes_skip_and_stop_together():
    context, port = multiprocessing.get_context("fork"), free_port()
    results = context.Queue()
    group = [context.Process(target=one_of_two, args=(r, port, results)) for r in range(2)]
    for process in group:
        process.start()
    first, second = results.get(timeout=60), results.get(timeout=60)
    for process in group:
        process.join()
    assert first == second and first[:2] == (6, 4)


@pytest.mark.gpu
def test_a_step_does_not_wait_for_the_gpu():
    class Watch(HookBase):
        def before_step(self):  # the first steps allocate
            torch.cuda.set_sync_debug_mode("error" if self.trainer.iter > 1 else "default")

        def after_step(self):
            torch.cuda.set_sync_debug_mode("default")

    torch.manual_seed(1)
    model = nn.Linear(3, 1).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    batches = [*GOOD[:6].cuda(), NAN.cuda(), GOOD[7].cuda()]
    trainer = Trainer(
        model, iter(batches), optimizer, squares, device="cuda", gather_metric_period=100
    )
    trainer.register_hooks([Watch()])
    trainer.train(0, 8)
    history = trainer.storage.history("total_loss").values()
    assert [iteration for _, iteration in history] == [0, 1, 2, 3, 4, 5, 7]
    assert model.weight.isfinite().all()


def test_a_full_gpu_is_one_clear_error():
    trainer = linear_trainer([torch.ones(2, 3)])

    def losses(model, x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer.compute_losses = losses
    with pytest.raises(UserError, match="train.max_batch_per_gpu"):
        trainer.train(0, 1)


def test_bf16_autocast_works_on_a_cpu():
    seen = []

    def losses(model, x):
        out = model(x)
        seen.append(out.dtype)
        return {"loss": out.float().square().mean()}

    trainer = linear_trainer([torch.ones(2, 3)], dtype=torch.bfloat16)
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


@pytest.fixture
def default_signals():
    """Also where the tests themselves are run by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    "number, code", [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGHUP, 129)]
)
def test_signal_writes_a_checkpoint_and_exits(tmp_path, default_signals, number, code):
    def batches():
        for step in range(10):
            if step == 3:
                os.kill(os.getpid(), number)
            yield torch.ones(2, 3)

    trainer = linear_trainer(batches())
    checkpointer = Checkpointer(trainer.model, str(tmp_path), trainer=trainer)
    trainer.register_hooks([StopOnSignal(checkpointer)])
    with pytest.raises(SystemExit) as stop:
        trainer.train(0, 10)
    assert stop.value.code == code
    again = linear_trainer([])
    Checkpointer(again.model, str(tmp_path), trainer=again).resume_or_load("", resume=True)
    assert again.iter == 3 and torch.equal(again.model.weight, trainer.model.weight)
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_run_under_nohup_goes_on(tmp_path, default_signals):
    def batches():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
            yield torch.ones(2, 3)

    trainer = linear_trainer(batches())
    trainer.register_hooks([StopOnSignal(Checkpointer(trainer.model, str(tmp_path)))])
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    trainer.train(0, 3)
    assert trainer.iter == 3
