"""Finding images on a file system. Works without detectron2."""

import glob
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import UserError
from .regions import RASTER_SUFFIXES, SLIDE_SUFFIXES

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
# In folders, a .vrt is not looked for: it stands for other files, which may be there as well.
_FOUND = (*IMAGE_SUFFIXES, *SLIDE_SUFFIXES, *(s for s in RASTER_SUFFIXES if s != ".vrt"))


def is_image_name(path: str) -> bool:
    """Whether the name has an image's suffix, and is not that of a hidden file."""
    name = os.path.basename(path)
    return name.lower().endswith(_FOUND) and not name.startswith(".")


def walk_files(folder: str) -> Iterator[str]:
    """All files below a folder; each folder once, whichever links lead to it or back to it."""
    waiting, known = [folder], set()
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in known:
                continue
            known.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            logger.warning("The folder %s is left out, it cannot be searched: %s", folder, error)
            continue
        for entry in entries:
            is_link = entry.is_symlink()  # known without asking the file system again
            if os.path.isdir(entry.path) if is_link else entry.is_dir():
                waiting.append(entry.path)
            elif is_link or entry.is_file():  # a dangling link fails when it is opened
                yield entry.path


def find_image_files(inputs: Iterable[str | Path]) -> list[Path]:
    """Finds what a tool's ``--input`` names: files (with any name), folders, glob patterns.

    Returns:
        Each image once; the images of a folder are sorted.

    Raises:
        UserError: an input does not exist, matches nothing, or is a folder without images.
    """
    found: list[str] = []
    for item in (os.path.expanduser(item) for item in inputs):
        matches = [item] if os.path.exists(item) else sorted(glob.glob(item, recursive=True))
        if not matches:
            raise UserError(f"--input: there is no file, folder or match for {item}")
        for path in matches:
            if not os.path.isdir(path):
                found.append(path)
                continue
            inside = sorted(filter(is_image_name, walk_files(path)))
            if not inside:
                raise UserError(
                    f"--input: the folder {path} has no images ({', '.join(IMAGE_SUFFIXES)}), "
                    "also not in its subfolders"
                )
            found += inside
    return list(dict.fromkeys(map(Path, found)))


def make_folder(path: str | Path) -> Path:
    """Makes the folder if needed.

    Raises:
        UserError: it cannot be made.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error}") from None
    return folder
