"""Images inside WebDataset tar shards, read where they lie.

A shard's headers are scanned once; then any image is one read at its offset, so that the stream
of samples stays exact: any position, any number of workers. WebDataset's own readers only go
forward. Works without detectron2 and without webdataset.
"""

import io
import logging
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lomar_det.data.image_files import is_image_name
from lomar_det.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardImage:
    """An image in a tar file; `lomar_det.data.images.load_image` opens it like a path."""

    shard: str
    name: str
    offset: int
    size: int

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    def read_bytes(self) -> bytes:
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError("the shard has become shorter since it was indexed")
        return content

    def open(self, mode: str = "rb") -> io.BytesIO:
        return io.BytesIO(self.read_bytes())

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"


class PackedStrings(Sequence[str]):
    """Millions of names in one piece of memory, which forked loader workers share.

    A list of strings would be copied into each of them bit by bit, as reference counts change.
    """

    def __init__(self, strings: Sequence[str]):
        encoded = [os.fsencode(s) for s in strings]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([len(e) for e in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]])


class Shard(Sequence[ShardImage]):
    """The images of one tar file, in its order.

    A damaged file gives the images that lie whole before the damage, and a warning.

    Raises:
        UserError: the file is missing or compressed.
    """

    def __init__(self, path: str):
        self.path = path
        names, spans, damage = [], [], None
        try:
            size = os.path.getsize(path)
            with tarfile.open(path, "r:") as tar:
                try:
                    for member in tar:
                        end = member.offset_data + member.size
                        if end > size:
                            damage = f"it ends inside {member.name}"
                        elif _is_plain(member) and is_image_name(member.name):
                            names.append(member.name)
                            spans.append((member.offset_data, member.size))
                except (tarfile.TarError, OSError, ValueError) as error:
                    damage = damage or str(error)
                damage = damage or _leftover(tar)
        except tarfile.TarError as error:  # of the very first header
            _refuse_compressed(path)
            damage = str(error)
        except OSError as error:
            raise UserError(f"the shard {path} cannot be opened: {error}") from None
        if damage:
            logger.warning(
                "The shard %s is damaged (%s): only the %d images before that are used; write or "
                "fetch it again",
                path,
                damage,
                len(names),
            )
        self.names = PackedStrings(names)
        self.spans = np.array(spans, dtype=np.int64).reshape(-1, 2)  # (N, 2): offset, size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> ShardImage:
        offset, size = self.spans[index].tolist()
        return ShardImage(self.path, self.names[index], offset, size)


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


def _leftover(tar: tarfile.TarFile) -> str | None:
    """tarfile takes a damaged header for the end; a real end is zeros, or nothing at all."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        return f"no valid header at byte {tar.offset}"
    return None


def _refuse_compressed(path: str) -> None:
    with open(path, "rb") as file:
        head = file.read(6)
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")):
        raise UserError(
            f"the shard {path} is compressed, so that images cannot be read where they lie; "
            "unpack it to a plain .tar (images are compressed already)"
        )


def permute_by_shards(
    lengths: Sequence[int], rng: np.random.Generator, shards_at_once: int = 8
) -> np.ndarray:
    """An order of all images that visits a few shards at a time.

    Shards are shuffled, and images within each group of ``shards_at_once`` shards, so that reads
    stay within a few files: file systems then profit from what they read ahead and keep.

    Args:
        lengths: Images in each shard; their indices follow one another in this order.
        rng: Decides everything.
        shards_at_once: Size of a group.

    Returns:
        A permutation of ``range(sum(lengths))``.
    """
    ends = np.cumsum(lengths)
    order = rng.permutation(len(lengths))
    groups = [order[i : i + shards_at_once] for i in range(0, len(order), shards_at_once)]
    return np.concatenate(
        [
            rng.permutation(np.concatenate([np.arange(ends[s] - lengths[s], ends[s]) for s in g]))
            for g in groups
        ]
    )
