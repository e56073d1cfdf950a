"""Image classification with a pretrained encoder: what `tools/finetune.py` runs."""

import argparse
import logging
import math
from pathlib import Path

from lomar_det.compat import require_detectron2

require_detectron2()

import torch
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import DataLoader

from lomar_det.checkpoint import load_encoder_weights
from lomar_det.engine import (
    Checkpointer,
    Trainer,
    resolve_precision,
    save_config,
    setup_run,
    standard_hooks,
    warmup_cosine_schedule,
    wrap_ddp,
)
from lomar_det.engine.config import build_model, load_config
from lomar_det.engine.detection import write_results
from lomar_det.engine.precision import autocast
from lomar_det.errors import UserError
from lomar_det.stream import SeededDataset, quiet_worker, seed_everything, stream_loader

from .classification import (
    AccuracyEvaluator,
    LinearProbe,
    MixedLoss,
    build_optimizer,
    eval_transform,
    train_transform,
)

logger = logging.getLogger(__name__)

MODES = ("train", "knn")


def main(args: argparse.Namespace) -> dict:
    """Trains or, with ``--eval-only``, evaluates; returns the last results.

    Raises:
        UserError: anything the user can mend.
    """
    cfg = load_config(args.config_file, args.opts)
    if OmegaConf.is_missing(cfg.data, "path"):
        raise UserError("data.path is not set: give the folder of your class folders")
    if cfg.train.mode not in MODES:
        raise UserError(f"train.mode={cfg.train.mode} is not one of {', '.join(MODES)}")
    setup_run(cfg)
    data = read_classification_data(cfg)
    cfg.model.num_classes = len(data.classes)
    if cfg.train.mode == "knn":
        return evaluate_knn(cfg, data)
    if args.eval_only:
        return evaluate_checkpoint(cfg, data)
    return train(cfg, data, args.resume)


def train(cfg: DictConfig, data: ClassificationData, resume: bool) -> dict:
    """The training run of a config; returns the accuracy of the last evaluation."""
    settings, device = cfg.train, torch.device(cfg.train.device)
    batch = settings.total_batch_size
    iters_per_epoch = max(1, len(data.train) // batch)
    max_iter = math.ceil(settings.epochs * iters_per_epoch)
    lr = settings.base_lr * batch / 256
    logger.info(
        "%d classes, %d pictures to train on, %d to validate; %g epochs x %d iterations of batch "
        "%d = %d iterations; learning rate %g * %d / 256 = %g",
        len(data.classes),
        len(data.train),
        len(data.val),
        settings.epochs,
        iters_per_epoch,
        batch,
        max_iter,
        settings.base_lr,
        batch,
        lr,
    )
    seed_everything(settings.seed)
    model = build_classifier(cfg, init=not resume).to(device)
    trainer = Trainer(
        wrap_ddp(model, settings.ddp, device),
        data_loader=None,
        optimizer=build_optimizer(model, settings, lr),
        compute_losses=MixedLoss(settings, len(data.classes), device),
        device=device,
        dtype=resolve_precision(settings.precision, device),
        accumulation_steps=settings.accumulation_steps,
        clip_grad_norm=settings.clip_grad_norm,
    )
    checkpointer = Checkpointer(trainer.model, settings.output_dir, trainer=trainer)
    results: dict = {}

    def evaluate_and_keep() -> dict:
        results.update(evaluate(cfg, model, data))
        return results

    trainer.register_hooks(
        standard_hooks(
            settings,
            checkpointer,
            warmup_cosine_schedule(settings.warmup_epochs / settings.epochs),
            max_iter,
            batch,
            max(1, round(settings.checkpoint_epochs * iters_per_epoch)),
            settings.max_to_keep,
            EvalHook(round(settings.eval_epochs * iters_per_epoch), evaluate_and_keep),
        )
    )
    start_iter = 0
    if resume:
        checkpointer.resume()
        start_iter = trainer.iter + 1
    trainer.data_loader = stream_loader(
        SeededDataset(range(len(data.train)), data.train.__getitem__, settings.seed),
        batch,
        settings.seed,
        start_iter,
        settings.accumulation_steps,
        cfg.data.num_workers,
        pin_memory=device.type == "cuda",
    )
    save_config(cfg)
    trainer.train(start_iter, max_iter)
    return results


def build_classifier(cfg: DictConfig, init: bool) -> nn.Module:
    """The model of a config, with the encoder of ``train.init_checkpoint`` if ``init``."""
    model = build_model(cfg)
    if init and cfg.train.init_checkpoint:
        load_encoder_weights(getattr(model, "encoder", model), cfg.train.init_checkpoint)
    elif init:
        logger.warning("train.init_checkpoint is empty: the encoder has random weights")
    return model


def evaluate_checkpoint(cfg: DictConfig, data: ClassificationData) -> dict:
    """Accuracy of ``train.init_checkpoint``, which must hold the whole classifier."""
    if not cfg.train.init_checkpoint:
        raise UserError("--eval-only needs weights: train.init_checkpoint=FILE")
    save_config(cfg, "config_eval.yaml")
    model = build_classifier(cfg, init=False)
    tensors, _ = read_state_dict(cfg.train.init_checkpoint)
    own = model.state_dict()
    wrong = [name for name, value in own.items() if getattr(tensors.get(name), "shape", 0) != value.shape]
    if wrong:
        raise UserError(
            f"{cfg.train.init_checkpoint} is not a checkpoint of this classifier with "
            f"{len(data.classes)} classes: {len(wrong)} tensors are missing or of another shape, "
            f"first {wrong[0]}; give the run's config and its model_final.pth"
        )
    model.load_state_dict({name: tensors[name] for name in own})
    return evaluate(cfg, model.to(cfg.train.device), data)


def evaluate(cfg: DictConfig, model: nn.Module, data: ClassificationData) -> dict:
    """Accuracy on the validation pictures: printed, and written to ``metrics_test.json``."""
    device = torch.device(cfg.train.device)

    def predict(batch) -> Tensor:
        with autocast(device, resolve_precision(cfg.train.precision, device)):
            return model(batch[0].to(device, non_blocking=True))

    loader = eval_loader(data.val, cfg)
    with inference_context(model):
        results = inference_on_dataset(predict, loader, AccuracyEvaluator())
    if comm.is_main_process():
        print_csv_format(results)
        write_results(results, Path(cfg.train.output_dir, "metrics_test.json"))
    return results


def evaluate_knn(cfg: DictConfig, data: ClassificationData) -> dict:
    """Accuracy by the k nearest training pictures; nothing is trained."""
    settings, device = cfg.train, torch.device(cfg.train.device)
    model = build_classifier(cfg, init=True).to(device).eval()
    save_config(cfg, "config_eval.yaml")
    data.set_transforms(model.img_size, cfg.data)
    data.train.transform = data.val.transform

    @torch.no_grad()
    def extract(folders: ClassFolders) -> tuple[Tensor, Tensor]:
        features, labels = [], []
        for images, numbers in eval_loader(folders, cfg):
            with autocast(device, resolve_precision(settings.precision, device)):
                features.append(model.features(images.to(device)).float().cpu())
            labels.append(numbers)
        return torch.cat(features), torch.cat(labels)

    train, val = extract(data.train), extract(data.val)
    top1 = 100 * knn_accuracy(*train, *val, settings.knn.k, settings.knn.temperature)
    results = {"classification": {"knn_top1": top1, "images": len(val[1])}}
    print_csv_format(results)
    write_results(results, Path(settings.output_dir, "metrics_test.json"))
    return results


def eval_loader(folders: ClassFolders, cfg: DictConfig) -> DataLoader:
    """Every picture once, in order; of several processes, each takes its share."""
    sampler = InferenceSampler(len(folders))
    return DataLoader(
        folders,
        batch_size=local_batch_size(cfg.train.total_batch_size, cfg.train.accumulation_steps),
        sampler=sampler,
        num_workers=cfg.data.num_workers,
        worker_init_fn=quiet_worker,
        generator=torch.Generator().manual_seed(0),
        pin_memory=cfg.train.device.startswith("cuda"),
    )
