"""detectron2's trainer with mixed precision on any device and gradient accumulation."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
from detectron2.engine import SimpleTrainer, create_ddp_model
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from .precision import autocast


def wrap_ddp(model: nn.Module, options: DictConfig, device: torch.device) -> nn.Module:
    """DistributedDataParallel with ``train.ddp``'s options where there are several processes."""
    options = OmegaConf.to_container(options)
    if device.type == "cpu":
        options["device_ids"] = None
    return create_ddp_model(model, **options)


class Trainer(SimpleTrainer):
    """One optimizer step per iteration, from one or several forward passes.

    Args:
        model: The model, or its DistributedDataParallel wrapper.
        data_loader: Endless iterable of batches.
        optimizer: Any torch optimizer.
        compute_losses: ``(model, batch) -> {name: scalar loss}``; calls the model by default.
        device: Where autocast applies.
        dtype: float32, bfloat16, or float16 (with loss scaling).
        accumulation_steps: Forward passes per optimizer step; their gradients are averaged.
        clip_grad_norm: Maximum norm of all gradients; None or 0 for no limit.
        gather_metric_period: Read the losses from the device every so many iterations.
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
        gather_metric_period: int = 1,
    ):
        super().__init__(model, data_loader, optimizer, gather_metric_period)
        self.compute_losses = compute_losses or (lambda model, batch: model(batch))
        self.device = torch.device(device)
        self.dtype = dtype
        self.accumulation_steps = accumulation_steps
        self.clip_grad_norm = clip_grad_norm
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)

    def run_step(self) -> None:
        try:
            self._step()
        except FloatingPointError as error:  # of the losses, or of detectron2's proposals
            raise UserError(
                f"training diverged in iteration {self.iter} ({error}). Nothing was updated; go on "
                "from the last checkpoint with --resume, with a lower learning rate or with "
                "train.precision=bf16 or fp32"
            ) from None
        except torch.OutOfMemoryError:
            raise UserError(
                f"the GPU's memory is too small for these settings (iteration {self.iter}): lower "
                "train.max_batch_per_gpu, or raise train.accumulation_steps where it is a number; "
                "the batch stays the same"
            ) from None

    def _step(self) -> None:
        self.optimizer.zero_grad()
        data_time, totals = 0.0, {}
        for step in range(self.accumulation_steps):
            start = time.perf_counter()
            batch = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            with self._no_sync_before_last(step):
                with autocast(self.device, self.dtype):
                    losses = self.compute_losses(self.model, batch)
                total = sum(losses.values()) / self.accumulation_steps
                self.grad_scaler.scale(total).backward()
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0) + loss.detach() / self.accumulation_steps
        self.after_backward()
        if self.clip_grad_norm:
            self.grad_scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
        # before the optimizer step: a non-finite loss spoils no weights
        self._write_metrics(totals, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def after_train(self) -> None:
        super().after_train()
        # End the loader's workers now: after an error its traceback keeps the iterator alive, and
        # the interpreter's exit would wait for them.
        end_workers = getattr(self._data_loader_iter_obj, "_shutdown_workers", None)
        if end_workers is not None:
            end_workers()
        self._data_loader_iter_obj = None

    def _no_sync_before_last(self, step: int):
        is_ddp = isinstance(self.model, DistributedDataParallel)
        if is_ddp and step < self.accumulation_steps - 1:
            return self.model.no_sync()
        return contextlib.nullcontext()

    def state_dict(self) -> dict:
        return super().state_dict() | {"grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Continues a run; learning rate and weight decay are those of today's config."""
        settings = [(group["lr"], group["weight_decay"]) for group in self.optimizer.param_groups]
        super().load_state_dict(state_dict)
        for group, (lr, weight_decay) in zip(self.optimizer.param_groups, settings, strict=True):
            group |= {"lr": lr, "initial_lr": lr, "weight_decay": weight_decay}
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
