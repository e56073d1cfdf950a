"""Parts of image classification: what surrounds the encoder in training and evaluation.

Shapes: B images, C embed_dim, K classes.
"""

import logging

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from omegaconf import DictConfig
from timm.data import Mixup, create_transform
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import accuracy
from torch import Tensor, nn

from lomar_det.errors import UserError

from .encoder import VisionTransformerEncoder

logger = logging.getLogger(__name__)


class LinearProbe(nn.Module):
    """A linear layer on frozen features, normalised by a BatchNorm without weights (MAE, app. A).

    The features are the mean of the patch tokens after the encoder's final norm.

    Args:
        encoder: Frozen, always in evaluation mode.
        num_classes: Outputs, K.
    """

    def __init__(self, encoder: VisionTransformerEncoder, num_classes: int):
        super().__init__()
        encoder.init_weights()
        self.encoder = encoder.requires_grad_(False)
        embed_dim = encoder.architecture["embed_dim"]
        self.bn = nn.BatchNorm1d(embed_dim, affine=False, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    @property
    def img_size(self) -> tuple[int, int]:
        return self.encoder.img_size

    def train(self, mode: bool = True) -> "LinearProbe":
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) -> (B, C)."""
        return self.encoder.patch_features(images).mean(dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) -> logits (B, K)."""
        return self.head(self.bn(self.features(images).float()))


class MixedLoss:
    """timm's loss, with mixup and cutmix where the settings ask for them.

    Called as the trainer calls ``compute_losses``: with the model and a batch of images (B, 3,
    height, width) and labels (B,).
    """

    def __init__(self, settings: DictConfig, num_classes: int, device: torch.device):
        self.device = device
        self.mixup, smoothing = None, settings.label_smoothing
        if settings.mixup or settings.cutmix:
            self.mixup = Mixup(
                mixup_alpha=settings.mixup,
                cutmix_alpha=settings.cutmix,
                label_smoothing=smoothing,
                num_classes=num_classes,
            )
            self.criterion = SoftTargetCrossEntropy()
        else:
            self.criterion = LabelSmoothingCrossEntropy(smoothing)

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = (x.to(self.device, non_blocking=True) for x in batch)
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
        return {"loss": self.criterion(model(images).float(), labels)}


class AccuracyEvaluator(DatasetEvaluator):
    """Top-1 and top-5 accuracy in percent, over all processes."""

    def reset(self) -> None:
        self.counts = torch.zeros(3, dtype=torch.float64)  # top-1, top-5, images

    def process(self, inputs: tuple[Tensor, Tensor], outputs: Tensor) -> None:
        logits, labels = outputs.float().cpu(), inputs[1].cpu()
        # with fewer than five classes top-5 says nothing, but must not fail
        shares = accuracy(logits, labels, topk=(1, min(5, logits.shape[1])))
        size = len(labels)
        self.counts += torch.tensor([*(float(s) * size for s in shares), size]).double()

    def evaluate(self) -> dict:
        counts = torch.stack(comm.all_gather(self.counts)).sum(0)
        top1, top5 = (counts[:2] / counts[2]).tolist()
        return {"classification": {"top1": top1, "top5": top5, "images": int(counts[2])}}


def train_transform(img_size: tuple[int, int], augmentation: DictConfig):
    """timm's training transform on a PIL image; draws from the global generators."""
    options = {key: value for key, value in augmentation.items() if key != "scale"}
    try:
        return create_transform(
            img_size,
            is_training=True,
            interpolation="bicubic",
            re_mode="pixel",
            scale=tuple(augmentation.scale),
            **options | {"re_prob": options["re_prob"] or 0.0},
        )
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"data.augmentation {dict(augmentation)} cannot be used: {error}") from None


def eval_transform(img_size: tuple[int, int], crop_pct: float):
    """timm's validation transform: resize, centre crop."""
    return create_transform(img_size, interpolation="bicubic", crop_pct=crop_pct)


def build_optimizer(model: nn.Module, settings: DictConfig, lr: float) -> torch.optim.Optimizer:
    """timm's optimizer with layer-wise learning rates, for schedulers that know no ``lr_scale``."""
    options = {"betas": tuple(settings.betas)} if "adam" in settings.optimizer else {}
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = len(trained) < len(list(model.parameters()))
    optimizer = create_optimizer_v2(
        trained if frozen else model,
        opt=settings.optimizer,
        lr=lr,
        weight_decay=settings.weight_decay,
        layer_decay=None if frozen else settings.layer_decay,
        **options,
    )
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return optimizer
