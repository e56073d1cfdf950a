"""Where the images of a pretraining run come from: folders, lists, COCO files, tar shards.

Works without detectron2.
"""

import glob
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from lomar_det.data.image_files import IMAGE_SUFFIXES, is_image_name, walk_files
from lomar_det.errors import UserError

from .shards import PackedStrings, Shard, ShardImage, permute_by_shards

logger = logging.getLogger(__name__)


class ImageList(Sequence[Path | ShardImage]):
    """Images by number: first those that are files, then those in shards."""

    def __init__(self, files: Sequence[str], shards: Sequence[Shard] = ()):
        self.files = PackedStrings(files)
        self.shards = [shard for shard in shards if len(shard)]
        # The number of the first image of each shard, and of the one after the last.
        self._starts = np.cumsum([len(self.files), *map(len, self.shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Path | ShardImage:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = int(index) % len(self)
        if index < len(self.files):
            return Path(self.files[index])
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.shards[shard][index - int(self._starts[shard])]

    def permutation(self, rng: np.random.Generator) -> np.ndarray:
        """All numbers shuffled; those in shards a few shards at a time, files anywhere between."""
        if not self.shards:
            return rng.permutation(len(self))
        order = np.empty(len(self), dtype=np.int64)
        is_file = rng.permutation(np.arange(len(self)) < len(self.files))
        order[is_file] = rng.permutation(len(self.files))
        lengths = [len(shard) for shard in self.shards]
        order[~is_file] = len(self.files) + permute_by_shards(lengths, rng)
        return order


def find_images(
    paths: str | Path | Iterable[str | Path], image_root: str | Path | None = None
) -> ImageList:
    """All images of one or several sources, in an order that depends on their names alone.

    A source is a folder (searched recursively; its images, or its ``.tar`` shards if it has no
    others), a ``.txt`` file with one path of an image or shard in each line (relative ones start
    at its folder; lines with ``#`` are comments), a COCO ``.json`` file, a ``.tar`` shard, or a
    single image. ``*``, ``?``, ``[0-9]`` and ``{000..123}`` in a source stand for several.

    Args:
        paths: The sources.
        image_root: Where the file names of COCO files start; by default at the file's own folder.

    Raises:
        UserError: a source does not exist, has no images, or is not what its suffix says.
    """
    paths = [str(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    files, shards = [], []
    sources = [source for path in paths for source in _expand(os.path.expanduser(path))]
    if image_root is not None and not any(source.endswith(".json") for source in sources):
        raise UserError("data.image_root is for COCO files, but data.path names no .json file")
    for source in sources:
        if os.path.isdir(source):
            found = _search_folder(source)
        elif source.endswith(".txt"):
            found = _read_list(source)
        elif source.endswith(".json"):
            found = _read_coco(source, image_root)
        else:
            found = [source]
        for path in found:
            (shards if path.endswith(".tar") else files).append(path)
    indexed = counted(map(Shard, shards), f"of {len(shards)} shards indexed")
    images = ImageList(files, list(indexed))
    if not images:
        raise UserError(f"data.path={paths}: none of its {len(shards)} shards has an image to read")
    return images


def _expand(source: str) -> list[str]:
    """The paths that a pattern stands for; what exists under its own name is no pattern."""
    if os.path.exists(source):
        return [source]
    expanded = []
    for path in _expand_braces(source) if "{" in source else [source]:
        matches = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else [path]
        if not matches or not os.path.lexists(matches[0]):
            raise UserError(f"{path} does not exist; set data.path to your images")
        expanded += matches
    return expanded


def _expand_braces(pattern: str) -> list[str]:
    try:
        from webdataset.shardlists import expand_urls
    except ImportError:
        raise UserError(
            f"{pattern}: braces need webdataset, pip install webdataset; or write the "
            "pattern with *"
        ) from None
    try:
        return expand_urls(pattern)
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"{pattern} is not a pattern like shards-{{000..123}}.tar: {error}"
        ) from None


def _search_folder(folder: str) -> list[str]:
    found = counted(walk_files(folder), f"files in {folder} seen")
    images, shards = [], []
    for path in found:
        if is_image_name(path):
            images.append(path)
        elif path.endswith(".tar"):
            shards.append(path)
    if images and shards:
        logger.warning(
            "%s has %d images and also %d .tar files, first %s: these are left out, name them in "
            "data.path if they have other images",
            folder,
            len(images),
            len(shards),
            min(shards),
        )
    if not images and not shards:
        raise UserError(
            f"the folder {folder} has no images ({', '.join(IMAGE_SUFFIXES)}) and no .tar "
            "shards, also not in its subfolders; set data.path to your images"
        )
    # as paths are sorted: a folder's files stay together
    return sorted(images or shards, key=lambda path: path.split(os.sep))


def _read_list(path: str) -> list[str]:
    try:
        lines = Path(path).read_text("utf-8-sig", errors="surrogateescape").split("\n")
    except OSError as error:
        raise UserError(f"the list {path} cannot be read: {error}") from None
    names = [line.strip() for line in lines]
    names = [name for name in names if name and not name.startswith("#")]
    return _below(os.path.dirname(path), names, path)


def _read_coco(path: str, image_root: str | Path | None) -> list[str]:
    try:
        images = json.loads(Path(path).read_text("utf-8-sig"))["images"]
        names = [str(image["file_name"]) for image in images]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from None
    except (KeyError, TypeError):
        raise UserError(
            f"{path} is not in COCO format: it has no list 'images' with a 'file_name' each"
        ) from None
    root = os.path.dirname(path) if image_root is None else os.path.expanduser(image_root)
    return _below(root, names, path)


def _below(root: str, names: list[str], listed_in: str) -> list[str]:
    """Names as paths; a wrong root is noticed here, a missing image when it is opened."""
    paths = [os.path.join(root, os.path.expanduser(name)) for name in names]
    if not paths:
        raise UserError(f"{listed_in} lists no images")
    if not any(os.path.lexists(path) for path in islice(paths, 100)):
        raise UserError(
            f"{listed_in}: {paths[0]} does not exist, nor do those after it; correct the paths"
            + (", or set data.image_root" if listed_in.endswith(".json") else "")
        )
    return paths


def counted(items: Iterable, what: str, seconds: float = 10.0) -> Iterator:
    """Passes items on, and logs every ten seconds how many there were."""
    due = time.monotonic() + seconds
    for count, item in enumerate(items, start=1):
        yield item
        if time.monotonic() >= due:
            logger.info("%d %s so far", count, what)
            due = time.monotonic() + seconds
