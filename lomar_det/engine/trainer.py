"""detectron2's trainer with mixed precision, accumulation, averaged weights and skipped steps."""

import contextlib
import functools
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.engine import SimpleTrainer, create_ddp_model
from detectron2.engine.hooks import EvalHook
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data.stream import ReportedBatch, Unreadable
from ..errors import UserError, as_user_error
from .checkpointer import Checkpointer
from .compilation import compile_blocks
from .device import autocast
from .setup import Run

logger = logging.getLogger(__name__)


def wrap_ddp(model: nn.Module, options: dict, device: torch.device) -> nn.Module:
    """Wraps a model in DistributedDataParallel with ``options`` if there are several processes."""
    # Not the local rank: schedulers may show every process a single GPU of its own.
    devices = None if device.type == "cpu" else [torch.cuda.current_device()]
    return create_ddp_model(model, **options, device_ids=devices)


def build_trainer(
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    compute_losses: Callable[[nn.Module, Any], dict[str, Tensor]] | None = None,
) -> "Trainer":
    """Builds the trainer that a run's settings ask for; the caller sets its loader later.

    The model must have its initial weights: averaging (``ema_decay``) begins with them.
    """
    settings = run.settings
    if settings.compile:
        logger.info(
            "%d transformer blocks will be compiled at the first step", compile_blocks(model)
        )
    return Trainer(
        wrap_ddp(model, settings.ddp, run.device),
        data_loader=None,
        optimizer=optimizer,
        compute_losses=compute_losses,
        device=run.device,
        dtype=run.dtype,
        accumulation_steps=run.accumulation_steps,
        clip_grad_norm=settings.clip_grad_norm,
        ema_decay=settings.ema_decay,
        gather_metric_period=settings.log_period,
    )


class Trainer(SimpleTrainer):
    """One optimizer step per iteration, from one or several forward passes.

    A step whose losses or gradients are not finite, in any process, is skipped: weights, optimizer
    and average stay as they are, and `skipped_in_a_row` counts it. The hook `StopOnDivergence` ends
    the run when there are too many.

    The host reads the outcome of a step before it updates the weights. It need not wait if the
    optimizer can skip a step on the device (``torch.optim.AdamW(..., fused=True)``) and there is
    neither an average nor fp16. Then it reads outcomes one step later, while the device computes.

    Args:
        model: The model, or its DistributedDataParallel wrapper.
        data_loader: Endless iterable of batches.
        optimizer: Any torch optimizer.
        compute_losses: ``(model, batch) -> {name: scalar loss}``; calls the model by default.
        device: Where autocast applies.
        dtype: float32, bfloat16, or float16 (with loss scaling).
        accumulation_steps: Forward passes per optimizer step; their gradients are averaged.
        clip_grad_norm: Maximum norm of all gradients; None or 0 for no limit.
        ema_decay: Keeps an exponential moving average of the weights, in `ema`; None for none. The
            decay rises to this limit as 1 - (1 + iteration) ** -0.75, so that the average of a
            short run is not its initial weights.
        gather_metric_period: The period of the writers. Losses may reach the storage one iteration
            late, but not in the iterations in which the writers read it.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader,
        optimizer: torch.optim.Optimizer,
        compute_losses: Callable[[nn.Module, Any], dict[str, Tensor]] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        accumulation_steps: int = 1,
        clip_grad_norm: float | None = None,
        ema_decay: float | None = None,
        gather_metric_period: int = 1,
    ):
        super().__init__(model, data_loader, optimizer, gather_metric_period)
        self.compute_losses = compute_losses or (lambda model, batch: model(batch))
        self.device = torch.device(device)
        self.dtype = dtype
        self.accumulation_steps = accumulation_steps
        self.clip_grad_norm = clip_grad_norm
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.ema = None
        if ema_decay is not None:
            self.ema = ModelEmaV3(
                self._plain_model, decay=ema_decay, use_warmup=True, warmup_power=0.75
            )
        self.skipped_in_a_row = 0
        self.unreadable: list[Unreadable] = []  # a hook empties the list
        self.checkpointer: Checkpointer | None = None  # hooks that end a run save with it
        self._unread: deque[_Outcome] = deque()

    @property
    def _plain_model(self) -> nn.Module:
        is_ddp = isinstance(self.model, DistributedDataParallel)
        return self.model.module if is_ddp else self.model

    @property
    def eval_model(self) -> nn.Module:
        """The model to evaluate and to save: the averaged weights if there are any."""
        return self._plain_model if self.ema is None else self.ema.module

    @property
    def _skips_on_device(self) -> bool:
        fused = getattr(self.optimizer, "_step_supports_amp_scaling", False)
        return fused and self.ema is None and not self.grad_scaler.is_enabled()

    def train(self, start_iter: int, max_iter: int) -> None:
        """detectron2's loop; a hook may end it earlier by lowering `max_iter`."""
        logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                while self.iter < self.max_iter:
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
            except Exception as error:
                if as_user_error(error) is None:  # a defect of ours
                    logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def run_step(self) -> None:
        try:
            self._step()
        except torch.OutOfMemoryError:
            raise UserError(
                f"the GPU has too little memory for these settings (iteration {self.iter}): lower "
                "train.max_batch_per_gpu, or raise train.accumulation_steps if it is a number. The "
                "batch stays the same"
            ) from None

    def _step(self) -> None:
        self.optimizer.zero_grad()
        losses, data_time = self._forward_backward()
        self.after_backward()
        self.grad_scaler.unscale_(self.optimizer)
        outcome = self._agree(losses, self._clip_gradients(), data_time)
        finite = outcome.values.isfinite().all()
        if self._skips_on_device:
            self._fused_step(skip=~finite)
        else:
            if finite:
                self.grad_scaler.step(self.optimizer)
                if self.ema is not None:
                    self.ema.update(self._plain_model, step=self.iter + 1)
            self.grad_scaler.update()
        self._unread.append(outcome.start_copy())
        due = (self.iter + 1) % self.gather_metric_period == 0 or self.iter + 1 == self.max_iter
        while len(self._unread) > (1 if self._skips_on_device and not due else 0):
            self._read(self._unread.popleft())

    def _forward_backward(self) -> tuple[dict[str, Tensor], float]:
        """Computes the gradients of a step; returns losses and seconds of waiting for data."""
        data_time, totals = 0.0, {}
        for step in range(self.accumulation_steps):
            start = time.perf_counter()
            batch = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            if isinstance(batch, ReportedBatch):
                batch, unreadable = batch
                self.unreadable += unreadable
            with self._no_sync_before_last(step):
                try:
                    with autocast(self.device, self.dtype):
                        losses = self.compute_losses(self.model, batch)
                except FloatingPointError as error:  # from detectron2's proposals
                    losses = self._nan_losses(error)
                total = sum(losses.values()) / self.accumulation_steps
                self.grad_scaler.scale(total).backward()
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0) + loss.detach() / self.accumulation_steps
        return totals, data_time

    def _nan_losses(self, error: FloatingPointError) -> dict[str, Tensor]:
        """Losses of a forward pass that failed on infinite values: the step will be skipped."""
        if comm.get_world_size() > 1:  # the other processes wait for gradients that never come
            raise UserError(
                f"training diverged in iteration {self.iter} ({error}); continue from the last "
                "checkpoint with --resume and a lower learning rate or train.precision=fp32"
            ) from None
        logger.warning("Iteration %d: %s", self.iter, error)
        used = [p.sum() for p in self.model.parameters() if p.requires_grad]
        return {"loss": sum(used) * math.nan}

    def _clip_gradients(self) -> Tensor:
        """Applies ``clip_grad_norm``; returns the norm before clipping."""
        parameters = list(self.model.parameters())
        if self.clip_grad_norm:
            return nn.utils.clip_grad_norm_(parameters, self.clip_grad_norm)
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def _agree(self, losses: dict[str, Tensor], norm: Tensor, data_time: float) -> "_Outcome":
        """Averages over all processes and collects their data times, in one small message."""
        world_size, count = comm.get_world_size(), len(losses) + 1
        values = torch.zeros(count + world_size, dtype=torch.float64, device=self.device)
        values[:count] = torch.stack([*losses.values(), norm]).double() / world_size
        values[count + comm.get_rank()] = data_time
        if world_size > 1:
            torch.distributed.all_reduce(values)
        return _Outcome(self.iter, list(losses), values)

    def _fused_step(self, skip: Tensor) -> None:
        """An optimizer step that the device leaves out if ``skip``, by GradScaler's protocol."""
        self.optimizer.grad_scale, self.optimizer.found_inf = None, skip.float()
        self.optimizer.step()
        del self.optimizer.grad_scale, self.optimizer.found_inf

    def _read(self, outcome: "_Outcome") -> None:
        """Stores the metrics of a step for the writers, or warns that the step was skipped."""
        losses, norm, data_time = outcome.read()
        put = functools.partial(self.storage.put_scalar, cur_iter=outcome.iteration)
        put("data_time", data_time)
        losses_are_finite = all(map(math.isfinite, losses.values()))
        if losses_are_finite and math.isfinite(norm):
            self.skipped_in_a_row = 0
            put("total_loss", sum(losses.values()))
            if len(losses) > 1:
                for name, value in losses.items():
                    put(name, value)
            put("grad_norm", norm)
            return
        self.skipped_in_a_row += 1
        # In fp16, scaled gradients overflow now and then by design; the scale then halves itself.
        if not (self.grad_scaler.is_enabled() and losses_are_finite):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            logger.warning(
                "Iteration %d is skipped, its loss or gradient is not finite: %s, norm %.4g",
                outcome.iteration,
                shown,
                norm,
            )

    def after_train(self) -> None:
        """Ends the run: every hook ends, whatever another one raises, and the first error is told.

        After an error in training, nothing is evaluated, and errors of hooks are dropped: a second
        error, such as writing to the same full disk, would hide the first.
        """
        is_finished, error = self.iter == self.max_iter, None
        self.storage.iter = self.iter
        for hook in self._hooks:
            if is_finished or not isinstance(hook, EvalHook):
                try:
                    hook.after_train()
                except Exception as another:
                    error = error or another
        self.concurrent_executor.shutdown()
        # End the loader's workers now: after an error, the traceback keeps the iterator alive, and
        # the interpreter would wait for the workers when it exits.
        end_workers = getattr(self._data_loader_iter_obj, "_shutdown_workers", None)
        if end_workers is not None:
            end_workers()
        self._data_loader_iter_obj = None
        if is_finished and error is not None:
            raise error

    def _no_sync_before_last(self, step: int):
        is_ddp = isinstance(self.model, DistributedDataParallel)
        if is_ddp and step < self.accumulation_steps - 1:
            return self.model.no_sync()
        return contextlib.nullcontext()

    def state_dict(self) -> dict:
        state = super().state_dict() | {"grad_scaler": self.grad_scaler.state_dict()}
        return state if self.ema is None else state | {"ema": self.ema.module.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores a run; learning rate and weight decay come from the present config."""
        groups = zip(
            state_dict["optimizer"]["param_groups"], self.optimizer.param_groups, strict=False
        )
        for saved, group in groups:  # another number of groups is refused below
            saved |= {key: group[key] for key in ("lr", "weight_decay", "fused") if key in group}
            saved["initial_lr"] = saved["lr"]
        self._refuse_another_clock(state_dict.get("hooks", {}))
        super().load_state_dict(state_dict)
        if state_dict["grad_scaler"]:  # empty if the run was not in fp16
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        if self.ema is not None and "ema" in state_dict:
            self.ema.module.load_state_dict(state_dict["ema"])
        elif self.ema is not None:
            logger.warning("The checkpoint has no averaged weights: averaging starts here")
            self.ema.set(self._plain_model)

    def _refuse_another_clock(self, saved: dict) -> None:
        """The share of the run that is done would be another one, and its schedule start again."""
        by_the_clock = any(type(hook).__qualname__ == "Clock" for hook in self._hooks)
        if self._hooks and saved and by_the_clock != ("Clock" in saved):
            then, now = "train.max_minutes", "train.epochs or train.max_iter"
            then, now = (now, then) if by_the_clock else (then, now)
            raise UserError(
                f"its length was set by {then}, not by {now}; to train on from its weights, start "
                "another run with train.init_checkpoint"
            )


@dataclass
class _Outcome:
    """What a step reports: its losses, the norm of its gradients, every process's data time."""

    iteration: int
    names: list[str]
    values: Tensor  # (len(names) + 1 + processes,)
    copied: torch.cuda.Event | None = None

    def start_copy(self) -> "_Outcome":
        """Starts the copy to the host without waiting for the device."""
        if self.values.is_cuda:
            self.values, self.copied = self.values.to("cpu", non_blocking=True), torch.cuda.Event()
            self.copied.record()
        return self

    def read(self) -> tuple[dict[str, float], float, float]:
        """Losses, gradient norm, and the longest data time, for which all processes wait."""
        if self.copied is not None:
            self.copied.synchronize()
        values, count = self.values.tolist(), len(self.names)
        losses = dict(zip(self.names, values[:count], strict=True))
        return losses, values[count], max(values[count + 1 :])
