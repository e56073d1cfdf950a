"""Writing WebDataset tar shards: what `tools/make_shards.py` does."""

import argparse
import io
import logging
import os
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lomar_det.config.rules import Rule, check_settings, number, one_of, whole
from lomar_det.data.image_files import IMAGE_SUFFIXES
from lomar_det.data.images import MAX_MEGAPIXELS, UnreadableImageError, load_image
from lomar_det.data.stream import quiet_worker
from lomar_det.errors import UserError

from .shards import ShardImage
from .sources import ImageList, find_images
from .unreadable import BadImageFile

# arguments of `write_shards`, and of the tool with dashes
_RULES = {
    "shortest_side": whole(1) | one_of(None),
    "quality": Rule("a whole number from 1 to 95", lambda value: value in range(1, 96)),
    "shard_mb": number("(0, inf)"),
    "num_workers": whole(0),
    "max_megapixels": number("(0, inf)") | one_of(None),
}

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> None:
    """Finds the images and writes the shards, as the arguments of the tool say."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    images = find_images(args.input, args.image_root)
    write_shards(
        images,
        args.output,
        args.shortest_side,
        args.quality,
        args.shard_mb,
        args.num_workers,
        args.max_megapixels,
        args.force,
    )


def write_shards(
    images: ImageList,
    output: str | Path,
    shortest_side: int | None = None,
    quality: int = 95,
    shard_mb: float = 500,
    num_workers: int = 0,
    max_megapixels: float | None = MAX_MEGAPIXELS,
    force: bool = False,
) -> list[Path]:
    """Writes ``shards-000000.tar`` and so on, in an order shuffled once and for all.

    Training shuffles only a few shards at a time, so that neighbours must not be of one kind. Files
    get their final names when all of them are written. Unreadable images are left out and listed in
    ``bad_images.txt``.

    Args:
        images: What to write.
        output: A folder, made if it does not exist.
        shortest_side: Images with more pixels on their shorter side are shrunk to it and stored
            as JPEG, turned as EXIF says; all others keep their bytes.
        quality: Of those JPEGs, 1 to 95.
        shard_mb: Megabytes after which a new shard is begun.
        num_workers: Processes that open and shrink; 0 for this one. The shards do not depend on it.
        max_megapixels: Larger images count as unreadable; None for no limit.
        force: Replace the shards that are there.

    Returns:
        The shards.

    Raises:
        UserError: webdataset is missing, there are shards already, nothing can be read or written.
    """
    try:
        from webdataset import ShardWriter
    except ImportError:
        raise UserError("writing needs webdataset: pip install webdataset") from None
    check_settings(locals(), _RULES)
    output = Path(output)
    old = sorted(output.glob("shards-*.tar"))
    if old and not force:
        raise UserError(f"{output} has shards already ({old[0].name}); --force replaces them")
    samples = DataLoader(
        _Encoded(images, shortest_side, quality, max_megapixels),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        worker_init_fn=quiet_worker,
    )
    try:
        output.mkdir(parents=True, exist_ok=True)
        bad = BadImageFile(output / "bad_images.txt")
        with _PartialShards(output) as partial:
            size = {"maxcount": len(images) + 1, "maxsize": shard_mb * 1e6}
            callbacks = {"opener": partial.begin, "post": partial.finish}
            settings = {"encoder": False, "mtime": 0, "verbose": 0}
            with ShardWriter(partial.pattern, **size, **callbacks, **settings) as writer:
                for suffix, content, reason in tqdm(samples, unit=" images", mininterval=1):
                    if reason:
                        bad.add([(content, reason)])
                    else:
                        writer.write({"__key__": f"{writer.total:09d}", suffix: content})
                total = writer.total
            if not total:
                raise UserError(f"none of the {len(images)} images can be read, see {bad.path}")
            shards = partial.rename()
        for path in set(old) - set(shards):
            path.unlink()
    except OSError as error:
        raise UserError(f"the shards in {output} cannot be written: {error}") from error
    logger.info("%d images in %d shards in %s", total, len(shards), output)
    if len(bad):
        logger.warning("%d images were left out, see %s", len(bad), bad.path)
    return shards


def encode(
    source: Path | ShardImage,
    shortest_side: int | None,
    quality: int,
    max_megapixels: float | None = MAX_MEGAPIXELS,
) -> tuple[str, bytes]:
    """Suffix (without a dot) and bytes of an image for a shard; see `write_shards`.

    Raises:
        UnreadableImageError: it cannot be read. It is decoded to find that out, even where its
            bytes are kept.
    """
    image = load_image(source, max_megapixels)
    scale = shortest_side / min(image.size) if shortest_side else 1
    if scale >= 1 and source.suffix.lower() in IMAGE_SUFFIXES:
        return source.suffix.lower()[1:], source.read_bytes()
    if scale < 1:
        width, height = (round(side * scale) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return "jpg", content.getvalue()


class _PartialShards:
    """Files under temporary names: they get their final ones all at once, or are removed."""

    def __init__(self, output: Path):
        self.output, self.files = output, []
        self.pattern = str(output).replace("%", "%%") + "/.shards-%06d.tar.partial"

    def begin(self, name: str) -> io.BufferedWriter:
        self.files.append(open(name, "wb"))  # noqa: SIM115, closed by finish
        return self.files[-1]

    def finish(self, _name: str) -> None:
        self.files[-1].flush()
        os.fsync(self.files[-1].fileno())
        self.files[-1].close()

    def rename(self) -> list[Path]:
        shards = [self.output / f"shards-{number:06d}.tar" for number in range(len(self.files))]
        for file, shard in zip(self.files, shards, strict=True):
            os.replace(file.name, shard)
        return shards

    def __enter__(self) -> "_PartialShards":
        return self

    def __exit__(self, *_) -> None:
        for file in self.files:
            file.close()
            Path(file.name).unlink(missing_ok=True)


class _Encoded(Dataset):
    """(suffix, bytes, "") of each image in shuffled order; ("", name, reason) of a bad one."""

    def __init__(self, images: ImageList, *settings):
        self.images, self.settings = images, settings
        self.order = images.permutation(np.random.default_rng(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[str, bytes | str, str]:
        image = self.images[self.order[index]]
        try:
            return *encode(image, *self.settings), ""
        except UnreadableImageError as error:
            return "", str(image), error.reason
        except OSError as error:  # for instance a side too long for JPEG
            return "", str(image), str(error)


def _as_it_is(sample):
    return sample
