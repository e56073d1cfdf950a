"""The parts of classification around the encoder: data, augmentation, loss, optimizer, accuracy.

Shapes: B images, K classes.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from timm.data import Mixup, create_transform
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import accuracy
from torch import Tensor, nn

from lomar_det.errors import UserError

from ..data.class_folders import ClassFolders, FindReadable
from .settings import AugmentationSettings, FinetuneSettings


def read_class_folders(path: str | Path, val_fraction: float, seed: int):
    """Training and validation images of a folder, and the names of their classes.

    Args:
        path: A folder of class folders, or a folder with ``train/`` and ``val/`` that each hold
            class folders.
        val_fraction: Share in (0, 1) of each class that is kept for validation if there are no
            ``train/`` and ``val/``; at least one image.
        seed: Decides the split.

    Returns:
        Two lists of (path, class index), and the class names.

    Raises:
        UserError: there are no class folders, ``train/`` and ``val/`` have different classes, or a
            class is too small to split.
    """
    root = Path(path).expanduser()
    if (root / "train").is_dir() and (root / "val").is_dir():
        train, val = ClassFolders(root / "train"), ClassFolders(root / "val")
        differ = sorted(set(train.classes) ^ set(val.classes))
        if differ:
            raise UserError(
                f"{root}/train and {root}/val have different classes: {differ[0]} is in one only"
            )
        return train.samples, val.samples, train.classes
    folders = ClassFolders(root)
    labels = np.array(folders.targets)
    kept = np.zeros(len(labels), dtype=bool)
    for index, name in enumerate(folders.classes):
        members = np.random.default_rng((seed, index)).permutation(np.flatnonzero(labels == index))
        count = max(1, round(val_fraction * len(members)))
        if count == len(members):
            raise UserError(
                f"class {name} of {root} has {len(members)} image(s), too few to keep "
                f"{val_fraction:g} of them for validation: add images, or give train/ and val/"
            )
        kept[members[:count]] = True
    samples = folders.samples
    train, val = ([samples[i] for i in np.flatnonzero(mask)] for mask in (~kept, kept))
    return train, val, folders.classes


def train_transform(img_size: tuple[int, int], augmentation: AugmentationSettings):
    """timm's training transform of a PIL image, which draws from the global generators."""
    options = dataclasses.asdict(augmentation)
    options |= {name: options[name] or 0.0 for name in ("hflip", "vflip", "re_prob")}
    options |= options.pop("others")
    try:
        return create_transform(
            img_size, is_training=True, interpolation="bicubic", re_mode="pixel", **options
        )
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"data.augmentation={options} cannot be used: {error}") from None


def eval_transform(img_size: tuple[int, int], crop_pct: float):
    """timm's validation transform: resize, centre crop."""
    return create_transform(img_size, interpolation="bicubic", crop_pct=crop_pct)


class MixedLoss:
    """Cross entropy with label smoothing and, where the settings ask for them, mixup and cutmix.

    Called as the trainer calls ``compute_losses``: with the model and a batch of images (B, 3,
    height, width) and labels (B,).
    """

    def __init__(self, settings: FinetuneSettings, device: torch.device, num_classes: int):
        self.device, self.mixup = device, None
        self.criterion: nn.Module = LabelSmoothingCrossEntropy(settings.label_smoothing)
        if settings.mixup or settings.cutmix:
            self.mixup = Mixup(
                mixup_alpha=settings.mixup,
                cutmix_alpha=settings.cutmix,
                label_smoothing=settings.label_smoothing,
                num_classes=num_classes,
            )
            self.criterion = SoftTargetCrossEntropy()

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        if self.mixup is not None:
            if len(images) % 2:  # timm mixes pairs
                raise UserError(
                    f"mixup and cutmix need an even number of images per forward pass, not "
                    f"{len(images)}: change train.total_batch_size or train.accumulation_steps"
                )
            images, labels = self.mixup(images, labels)
        return {"loss": self.criterion(model(images).float(), labels)}


class AccuracyEvaluator(DatasetEvaluator):
    """Top-1 and top-5 accuracy in percent, over all processes, of the images that can be read.

    Args:
        find_readable: Finds the readable images by the labels of a `MarkUnreadable`.
    """

    def __init__(self, find_readable: FindReadable):
        self.find_readable = find_readable

    def reset(self) -> None:
        self.correct1 = self.correct5 = 0.0
        self.labels: list[int] = []

    def process(self, inputs: tuple[Tensor, Tensor], outputs: Tensor) -> None:
        logits, labels = outputs.float().cpu(), inputs[1].cpu()
        self.labels += labels.tolist()
        readable = labels >= 0
        logits, labels = logits[readable], labels[readable]
        # With five classes or fewer, top-5 is always 100 %.
        ks = 1, min(5, logits.shape[1])
        top1, top5 = accuracy(logits, labels, ks) if len(labels) else (0.0, 0.0)
        self.correct1 += float(top1) * len(labels)
        self.correct5 += float(top5) * len(labels)

    def evaluate(self) -> dict:
        """The accuracies, and the number of images that they are from.

        Raises:
            UserError: see `FindReadable`.
        """
        counts = comm.all_gather((self.correct1, self.correct5, self.labels))
        correct1, correct5, labels = map(list, zip(*counts, strict=True))
        images = int(self.find_readable(torch.tensor(sum(labels, []))).sum())
        top1, top5 = sum(correct1) / images, sum(correct5) / images
        return {"classification": {"top1": top1, "top5": top5, "images": images}}


def build_optimizer(
    model: nn.Module, settings: FinetuneSettings, lr: float
) -> torch.optim.Optimizer:
    """timm's optimizer of all parameters that are trained, with layer-wise learning rates.

    timm's own schedulers apply the ``lr_scale`` of each group. Ours do not, so the learning rate of
    each group is scaled here.
    """
    options = {"betas": tuple(settings.betas)} if "adam" in settings.optimizer else {}
    try:
        optimizer = create_optimizer_v2(
            model,
            opt=settings.optimizer,
            lr=lr,
            weight_decay=settings.weight_decay,
            layer_decay=settings.layer_decay,
            **options,
        )
    except (AssertionError, ValueError) as error:
        raise UserError(f"train.optimizer={settings.optimizer} cannot be used: {error}") from None
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return optimizer
