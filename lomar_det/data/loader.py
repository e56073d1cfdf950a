"""The detection training loader: detectron2's dicts and mapper on a resumable stream."""

from collections.abc import Callable
from functools import partial

from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator
from detectron2.data.detection_utils import SizeMismatchError
from torch.utils.data import DataLoader

from ..errors import UserError
from ..stream import SeededDataset, stream_loader


def _map_or_name_file(mapper: Callable[[dict], dict | None], entry: dict) -> dict | None:
    try:
        return mapper(entry)
    except (OSError, SizeMismatchError) as error:
        raise UserError(
            f"{entry['file_name']} cannot be used: {error}; repair the picture or its entry in the "
            "annotations, or remove both"
        ) from None


def build_train_loader(
    dataset: list[dict],
    mapper: Callable[[dict], dict | None],
    total_batch_size: int,
    num_workers: int = 4,
    seed: int = 0,
    start_iter: int = 0,
    accumulation_steps: int = 1,
) -> DataLoader:
    """An endless loader of lists of mapped dicts.

    Args:
        dataset: Dicts in detectron2's standard format.
        mapper: For instance detectron2's `DatasetMapper`.
        total_batch_size: Images per optimizer step over all processes.
        num_workers: Loader processes; the samples do not depend on it.
        seed: Seed of order and augmentation.
        start_iter: Optimizer step at which the stream begins.
        accumulation_steps: Forward passes per optimizer step.
    """
    make = partial(_map_or_name_file, mapper)
    samples = SeededDataset(DatasetFromList(dataset, copy=False), make, seed)
    return stream_loader(
        samples,
        total_batch_size,
        seed,
        start_iter,
        accumulation_steps,
        num_workers,
        collate_fn=trivial_batch_collator,
    )
