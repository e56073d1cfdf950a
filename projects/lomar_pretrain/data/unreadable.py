"""Images that cannot be read: replaced by others, and never in silence.

A loader's worker replaces them; what went wrong travels with the batch to the main process, where
`lomar_pretrain.runs.hooks.CountBadImages` keeps the books. Works without detectron2.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import default_collate

from lomar_det.data.images import UnreadableImageError
from lomar_det.data.stream import ReportedBatch, SeededDataset, Unreadable
from lomar_det.errors import AGAIN, UserError

# where there are too many
REMEDY = f"Repair or remove them, or raise data.max_bad_fraction, {AGAIN}"


class ReplaceUnreadable:
    """Lets `SeededDataset` draw another image, from (seed, position), for an unreadable one.

    Args:
        transform: Image -> sample; raises `UnreadableImageError`.
        name: Of an image.
    """

    def __init__(self, transform: Callable[..., Any], name: Callable[[Any], str] = str):
        self.transform, self.name = transform, name
        self._failed: list[Unreadable] = []

    def __call__(self, image) -> tuple[Any, list[Unreadable]] | None:
        """The sample, and which images it replaces; None for an unreadable image."""
        try:
            sample = self.transform(image)
        except UnreadableImageError as error:
            self._failed.append((self.name(image), error.reason))
            if len(self._failed) == SeededDataset.max_tries:
                raise UserError(
                    f"{len(self._failed)} images in a row cannot be read, last "
                    f"{self.name(image)} ({error.reason}); check data.path"
                ) from None
            return None
        failed, self._failed = self._failed, []
        return sample, failed


def collate_images(samples: list[tuple[Any, list[Unreadable]]]) -> ReportedBatch:
    """One batch, and all images that were replaced in it."""
    samples, failed = zip(*samples, strict=True)
    return ReportedBatch(default_collate(list(samples)), [bad for some in failed for bad in some])


class BadImageFile:
    """``bad_images.txt``: an image and the reason in each line, each image once.

    Args:
        path: Created with the first image.
        resume: Go on with what is there; otherwise it is removed.
    """

    def __init__(self, path: str | Path, resume: bool = False):
        self.path, self._known = Path(path), set()
        if not resume:
            self.path.unlink(missing_ok=True)
        elif self.path.is_file():
            lines = self.path.read_text("utf-8", errors="surrogateescape").split("\n")
            self._known = {line.partition("\t")[0] for line in lines if line}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, name: str) -> bool:
        return _in_one_line(name) in self._known

    def add(self, failed: list[Unreadable]) -> list[Unreadable]:
        """Writes down those that are not yet there, and returns them."""
        new = {}
        for name, reason in failed:
            name = _in_one_line(name)
            if name not in self._known:
                new.setdefault(name, reason)
        if new:
            self._known |= new.keys()
            with open(self.path, "a", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(f"{name}\t{reason}\n" for name, reason in new.items())
        return list(new.items())


def _in_one_line(name: str) -> str:
    return name.replace("\n", "\\n").replace("\t", "\\t")
