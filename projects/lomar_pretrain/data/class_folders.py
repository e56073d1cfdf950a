"""Labelled images in class folders, for the kNN probe and for classification.

Works without detectron2.

Shapes: B images.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from lomar_det.data.image_files import is_image_name
from lomar_det.data.images import UnreadableImageError, load_image
from lomar_det.errors import AGAIN, UserError

from .unreadable import REMEDY, BadImageFile

logger = logging.getLogger(__name__)


class ClassFolders(ImageFolder):
    """torchvision's `ImageFolder` (``root/CLASS/**/image``) with our way of opening images.

    Besides EXIF, 16 bits and TIFF, that means: hidden files and hidden class folders do not count,
    and folders without images are no classes (a warning names them). The attributes
    ``classes``, ``class_to_idx``, ``samples`` and ``targets`` are torchvision's.

    Args:
        root: The folder of the class folders.

    Raises:
        UserError: no such folder, or less than two classes in it.
    """

    def __init__(self, root: str | Path):
        root = Path(root).expanduser()
        if not root.is_dir():
            raise UserError(f"the folder of labelled images {root} does not exist")
        super().__init__(str(root), loader=load_image, is_valid_file=is_image_name)

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        folders = sorted(
            entry.name
            for entry in os.scandir(directory)
            if entry.is_dir() and not entry.name.startswith(".")
        )
        classes = [name for name in folders if _has_images(os.path.join(directory, name))]
        empty = sorted(set(folders) - set(classes))
        if empty:
            logger.warning("%s: no images, so no classes: %s", directory, ", ".join(empty))
        if len(classes) < 2:
            raise UserError(
                f"{directory} has {len(classes)} class folders with images, at least 2 are "
                "needed: one folder per class, images inside"
            )
        return classes, {name: index for index, name in enumerate(classes)}


class LabelledImages(Dataset):
    """(path, class index) pairs as (image tensor, class index).

    Args:
        samples: The pairs.
        transform: From the opened RGB image to a tensor (3, height, width).
    """

    def __init__(self, samples: list[tuple[str, int]], transform: Callable):
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, sample: tuple[str, int]) -> tuple[Tensor, int]:
        path, label = sample
        return self.transform(load_image(path)), label

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.load(self.samples[index])


class MarkUnreadable(Dataset):
    """Images to measure on: a blank one, marked in its label, where one cannot be read.

    Each image counts once, so that no other can replace it; see `FindReadable`.

    Args:
        images: All to be looked at.
        size: (height, width) of a blank one.
    """

    def __init__(self, images: LabelledImages, size: tuple[int, int]):
        self.images, self.size = images, size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            return self.images[index]
        except UnreadableImageError:
            return torch.zeros(3, *self.size), -1 - index


class FindReadable:
    """Tells the labels of `MarkUnreadable` that are classes from those of unreadable images.

    Unreadable images are reported once.

    Args:
        samples: The (path, class) pairs of its images.
        purpose: What is measured on them, for the log.
        listed_in: A `BadImageFile` for the unreadable ones.
        max_fraction: Share that may be unreadable: what is measured on few others means little.
    """

    def __init__(
        self,
        samples: list[tuple[str, int]],
        purpose: str,
        listed_in: Path | None = None,
        max_fraction: float = 1.0,
    ):
        self.samples, self.purpose = samples, purpose
        self.listed_in, self.max_fraction = listed_in, max_fraction
        self._met: set[str] = set()

    def __call__(self, labels: Tensor) -> Tensor:
        """Which of the labels (B,) are classes, (B,) bool.

        Raises:
            UserError: too few, or none.
        """
        readable = labels >= 0
        unreadable = [self.samples[-1 - mark][0] for mark in labels[~readable].tolist()]
        if not unreadable:
            return readable
        new = [path for path in unreadable if path not in self._met]
        self._met.update(new)
        count = f"{self.purpose}: {len(unreadable)} of {len(labels)} images cannot be read"
        where = f"first {unreadable[0]!r}"
        if self.listed_in is not None:
            where += f", all in {self.listed_in}"
            file = BadImageFile(self.listed_in, resume=True)
            file.add([(path, _reason(path)) for path in new if path not in file])
        if len(unreadable) == len(labels):
            raise UserError(f"{count}, {where}: repair them, {AGAIN}")
        if len(unreadable) > self.max_fraction * len(labels):
            raise UserError(
                f"{count}, more than data.max_bad_fraction={self.max_fraction:g}; {where}. {REMEDY}"
            )
        if new:
            logger.warning("%s and are left out, %s", count, where)
        return readable


def _reason(path: str) -> str:
    try:
        load_image(path)
    except UnreadableImageError as error:
        return error.reason
    return "cannot be read at times"


def _has_images(folder: str) -> bool:
    walk = os.walk(folder, followlinks=True)
    return any(is_image_name(name) for _, _, names in walk for name in names)
