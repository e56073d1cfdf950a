"""The detection training loader: detectron2's dicts and mapper on a resumable stream."""

from collections.abc import Callable

from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator
from torch.utils.data import DataLoader

from .stream import SeededDataset, stream_loader


def build_train_loader(
    dataset: list[dict],
    mapper: Callable[[dict], dict | None],
    total_batch_size: int,
    num_workers: int = 4,
    seed: int = 0,
    start_iter: int = 0,
    accumulation_steps: int = 1,
    tiles: Callable[[list[dict]], list[dict]] | None = None,
) -> DataLoader:
    """An endless loader of lists of mapped dicts.

    Args:
        dataset: Dicts in detectron2's standard format.
        mapper: For instance `RGBDatasetMapper`.
        total_batch_size: Images per optimizer step over all processes.
        num_workers: Loader processes; the samples do not depend on it.
        seed: Seed of order and augmentation.
        start_iter: Optimizer step at which the stream begins.
        accumulation_steps: Forward passes per optimizer step.
        tiles: Makes tiles of the images, see `Tiles`.
    """
    dataset = dataset if tiles is None else tiles(dataset)
    samples = SeededDataset(DatasetFromList(dataset, copy=False), mapper, seed)
    return stream_loader(
        samples,
        total_batch_size,
        seed,
        start_iter,
        accumulation_steps,
        num_workers,
        collate_fn=trivial_batch_collator,
    )
