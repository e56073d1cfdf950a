"""kNN accuracy: how good features are on labelled images, without training anything.

Shapes: N training and n test features, C embed_dim.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lomar_det.data.stream import quiet_worker
from lomar_det.errors import UserError

from ..data.class_folders import ClassFolders, FindReadable, LabelledImages, MarkUnreadable
from ..data.transforms import fit_image

logger = logging.getLogger(__name__)

TEMPERATURE = 0.07  # of the votes, as in InstDisc and DINO


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = TEMPERATURE,
) -> float:
    """Share of test features that their neighbours classify correctly (weighted kNN).

    The convention of InstDisc (Wu et al., CVPR 2018) and DINO: the k training features of highest
    cosine similarity s vote for their class with weight exp(s / temperature).

    Args:
        train_features: (N, C), of any length.
        train_labels: (N,) long.
        test_features: (n, C).
        test_labels: (n,) long.
        k: Number of neighbours; all training features if there are fewer.
        temperature: The lower it is, the more the nearest neighbours count.

    Returns:
        Top-1 accuracy in [0, 1].
    """
    train = F.normalize(train_features.float(), dim=1)
    test = F.normalize(test_features.float(), dim=1)
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    correct = 0
    for features, labels in zip(test.split(1024), test_labels.split(1024), strict=True):
        similarity, neighbours = (features @ train.T).topk(min(k, len(train)), dim=1)
        # Relative to the nearest neighbour: the winner is the same, and nothing can overflow.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(features), num_classes)
        votes.scatter_add_(1, train_labels[neighbours], weights)
        correct += int((votes.argmax(dim=1) == labels).sum())
    return correct / len(test_labels)


@torch.no_grad()
def extract_features(
    encoder: nn.Module, loader: DataLoader, autocast: Callable = nullcontext
) -> tuple[Tensor, Tensor]:
    """Mean of the patch tokens of whole images, and their labels, both on the CPU.

    Args:
        encoder: In evaluation mode, with ``patch_features``.
        loader: Of images (B, 3, height, width) and labels (B,).
        autocast: Context of the forward passes, for mixed precision.

    Returns:
        Features (n, C) in fp32 and labels (n,).
    """
    device = next(encoder.parameters()).device
    features, labels = [], []
    for images, numbers in loader:
        with autocast():
            tokens = encoder.patch_features(images.to(device))  # (B, H * W, C)
        features.append(tokens.float().mean(dim=1).cpu())
        labels.append(numbers)
    return torch.cat(features), torch.cat(labels)


def split_per_class(labels: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Indices of the training and the test half: every class shuffled, then cut in the middle.

    Halves are used and not leave-one-out, so that neighbours come from training images, as in other
    projects. The extra image of an odd class goes to training.
    """
    rng = np.random.default_rng(seed)
    train, test = [], []
    for label in labels.unique().tolist():
        members = rng.permutation(torch.nonzero(labels == label).flatten().numpy())
        half = -(-len(members) // 2)
        train += members[:half].tolist()
        test += members[half:].tolist()
    return torch.tensor(train, dtype=torch.long), torch.tensor(test, dtype=torch.long)


def chance_level(labels: Tensor) -> float:
    """Accuracy of always saying the most frequent class."""
    return labels.bincount().max().item() / len(labels)


class KNNProbe:
    """Measures a model on labelled images, the same ones each time.

    The feature of an image is the mean of its patch tokens after the final norm. The image is
    whole, unmasked and of the model's size. Patch tokens are used because reconstruction trains
    them and not the class token, and because classification and detection start from them. They are
    taken after the norm because the reconstruction head reads them there. Before the norm, a few
    channels are so large that they alone would decide the cosine.

    Args:
        path: Folder of class folders.
        img_size: (height, width) of the model.
        k: Number of neighbours.
        max_images: At most this many images, spread evenly over a larger folder.
        batch_size: Images per forward pass.
        num_workers: Processes that open images.
        autocast: Context of the forward passes, for mixed precision.

    Raises:
        UserError: the folder is not as `ClassFolders` wants it.
    """

    def __init__(
        self,
        path: str,
        img_size: tuple[int, int],
        k: int = 20,
        max_images: int = 2000,
        batch_size: int = 64,
        num_workers: int = 0,
        autocast: Callable = nullcontext,
    ):
        self.path, self.img_size, self.k = path, img_size, k
        self.batch_size, self.num_workers, self.autocast = batch_size, num_workers, autocast
        folders = ClassFolders(path)
        samples, self.num_classes = folders.samples, len(folders.classes)
        number = min(max_images, len(samples))
        # Samples are sorted by class, so even steps keep the shares of the classes.
        chosen = [samples[i * len(samples) // number] for i in range(number)]
        self.images = LabelledImages(chosen, partial(fit_image, size=img_size))
        self.chance = 0.0

    @torch.no_grad()
    def measure(self, model: nn.Module) -> float:
        """Top-1 accuracy of a model's features, in percent; also sets ``chance``.

        The model's mode and the global generators stay as they are.

        Raises:
            UserError: too few of the images could be read.
        """
        features, labels = self._extract(model)
        train, test = split_per_class(labels)
        if len(labels[test].unique()) < 2:
            raise UserError(
                f"train.probe.path={self.path}: less than two classes have two readable images "
                f"among the {len(self.images)} looked at; add images or raise "
                "train.probe.max_images"
            )
        self.chance = 100 * chance_level(labels[test])
        return 100 * knn_accuracy(
            features[train], labels[train], features[test], labels[test], self.k
        )

    def _extract(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Features (n, C) and labels (n,) of the chosen images that can be read, on the CPU."""
        loader = DataLoader(
            MarkUnreadable(self.images, self.img_size),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            worker_init_fn=quiet_worker,
            # Starting the loader draws a number, which must not come from the run's generator.
            generator=torch.Generator().manual_seed(0),
        )
        was_training = model.training
        model.eval()
        try:
            features, labels = extract_features(model, loader, self.autocast)
        finally:
            model.train(was_training)
        readable = FindReadable(self.images.samples, "kNN probe")(labels)
        return features[readable], labels[readable]
