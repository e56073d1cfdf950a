"""Are the images of a COCO file there, readable, and of the size that it gives?"""

import os
from pathlib import Path

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ...errors import UserError
from ..images import image_size, load_image
from ..stream import get_world_size, quiet_worker
from .findings import Findings


def check_files(
    entries: list[dict],
    folder: Path,
    findings: Findings,
    decode: bool = False,
    progress: bool = False,
) -> None:
    """Adds what is wrong with the images to ``findings``, using several processes.

    Args:
        entries: ``images`` of a COCO file.
        folder: Where the images are.
        findings: Where to note it.
        decode: Read the images completely, not just their headers.
        progress: Show a progress bar.
    """
    # A few images are read sooner than processes start, and headers are quick to read.
    enough = len(entries) > (50 if decode else 2000)
    loader = DataLoader(
        _Checked(entries, folder, decode),
        batch_size=16,
        num_workers=min(16, -(-(os.cpu_count() or 1) // get_world_size())) if enough else 0,
        collate_fn=list,
        worker_init_fn=quiet_worker,
    )
    with tqdm(total=len(entries), unit=" images", disable=not progress) as bar:
        for results in loader:
            for result in results:
                if result is not None:
                    findings.add(*result)
            bar.update(len(results))


class _Checked(Dataset):
    """Per image: None, or the kind of finding and an example of it."""

    def __init__(self, entries: list[dict], folder: Path, decode: bool):
        self.entries, self.folder, self.decode = entries, folder, decode

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[str, str] | None:
        entry = self.entries[index]
        path = self.folder / entry["file_name"]
        if not path.is_file():
            return "missing-file", entry["file_name"]
        given = (entry["width"], entry["height"])
        try:
            size = None if self.decode else image_size(path)
            if size != given:
                size = load_image(path).size
        except UserError as error:
            return "unreadable-file", str(error)
        if size == given:
            return None
        (w, h), (x, y) = given, size
        return "size", f"the entry of {entry['file_name']} says {w} x {h}, the file is {x} x {y}"
