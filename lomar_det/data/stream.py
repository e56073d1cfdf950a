"""A stream of training samples that depends only on the seed and the position.

detectron2's loader draws augmentations from the state of worker processes, so a resumed run sees
other images. Here, sample n of the stream depends neither on the worker that makes it nor on where
the run was started. A run can begin at any position.
"""

import contextlib
import logging
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ..errors import UserError

logger = logging.getLogger(__name__)

Unreadable = tuple[str, str]  # name of an image, and the reason


class ReportedBatch(NamedTuple):
    """A batch, and the unreadable images that other images replace in it."""

    samples: Any
    unreadable: list[Unreadable]


def get_rank() -> int:
    """The index of this process; 0 if there is only one."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def get_world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def mix_seed(*numbers: int) -> int:
    """One well-mixed 32-bit seed from several non-negative numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators, on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _seed_cpu(seed: int) -> None:
    """Seeds CPU generators; torch.manual_seed seeds all devices, 0.3 ms more for every sample."""
    random.seed(seed)
    np.random.seed(seed)
    torch.random.default_generator.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators; the main process restores them afterwards.

    In a worker process nothing else draws from them, so they need not be restored.
    """
    if get_worker_info() is not None:
        _seed_cpu(seed)
        yield
        return
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        _seed_cpu(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class StreamSampler(Sampler):
    """Infinite shuffled epochs as (position, index) pairs; each process takes every n-th.

    Args:
        size: Number of samples of the data set.
        seed: Epoch e is shuffled with (seed, e).
        start: Position in the global stream at which to begin.
        shuffle: False keeps the order of the data set.
        permutation: Draws the order of an epoch, all of ``range(size)``; by default every order is
            equally likely. For data that is faster to read in some orders.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        start: int = 0,
        shuffle: bool = True,
        permutation: Callable[[np.random.Generator], np.ndarray] | None = None,
    ):
        self.size, self.seed, self.start, self.shuffle = size, seed, start, shuffle
        self.permutation = permutation or (lambda rng: rng.permutation(size))
        self.rank, self.world_size = get_rank(), get_world_size()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position = self.start + self.rank
        epoch, order = -1, None
        while True:
            if position // self.size != epoch:
                epoch = position // self.size
                rng = np.random.default_rng((self.seed, epoch))
                order = self.permutation(rng) if self.shuffle else np.arange(self.size)
            yield position, int(order[position % self.size])
            position += self.world_size


class SeededDataset(Dataset):
    """Makes sample ``(position, index)`` under a seed of its own.

    Args:
        samples: Entries by index.
        make: Turns an entry into a training sample. If it returns None ("cannot be used"), another
            entry is drawn.
        seed: Combined with the position.
    """

    max_tries = 100  # in a row; never reached by chance, even if half of the entries are unusable

    def __init__(self, samples, make: Callable[[Any], Any], seed: int):
        self.samples, self.make, self.seed = samples, make, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]):
        position, index = key
        with seeded(mix_seed(self.seed, position)):
            for _ in range(self.max_tries):
                sample = self.make(self.samples[index])
                if sample is not None:
                    return sample
                index = random.randrange(len(self.samples))
        raise UserError(f"{self.max_tries} samples in a row could not be used; check the data set")


def quiet_worker(_: int) -> None:
    """Makes a worker leave Ctrl-C, SIGUSR1, SIGHUP and the first SIGTERM to the main process.

    These signals often reach the whole process group. A worker that dies of one would end the run
    before the main process has written its checkpoint. A second SIGTERM ends the worker, and so
    does a minute after the first.
    """

    def ignore_once(*_) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(60)  # SIGALRM ends the worker if the main process does not

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, ignore_once)
    torch.set_num_threads(1)


def local_batch_size(total_batch_size: int, accumulation_steps: int = 1) -> int:
    """Samples per process and forward pass.

    Raises:
        UserError: the total does not divide evenly.
    """
    parts = get_world_size() * accumulation_steps
    if total_batch_size < 1 or total_batch_size % parts:
        raise UserError(
            f"a total batch size of {total_batch_size} cannot be split over "
            f"{get_world_size()} process(es) x {accumulation_steps} accumulation step(s): "
            f"choose a multiple of {parts}"
        )
    return total_batch_size // parts


def count_accumulation_steps(
    total_batch_size: int, max_batch_per_gpu: int, accumulation_steps: int | str = "auto"
) -> int:
    """Forward passes per optimizer step; logs how the batch is split.

    Args:
        total_batch_size: Samples per optimizer step over all processes.
        max_batch_per_gpu: Samples per process and forward pass that ``auto`` may use.
        accumulation_steps: A number is taken as it is; ``auto`` is the smallest one that divides
            the batch evenly.

    Raises:
        UserError: the total does not divide evenly.
    """
    if accumulation_steps == "auto":
        per_process = local_batch_size(total_batch_size)
        accumulation_steps = next(
            steps
            for steps in range(1, per_process + 1)
            if per_process % steps == 0 and per_process // steps <= max_batch_per_gpu
        )
    images = local_batch_size(total_batch_size, accumulation_steps)
    logger.info(
        "Batch: %d images x %d process(es) x %d accumulation step(s) = %d",
        images,
        get_world_size(),
        accumulation_steps,
        total_batch_size,
    )
    return accumulation_steps


def stream_loader(
    dataset: SeededDataset,
    total_batch_size: int,
    seed: int,
    start_iter: int = 0,
    accumulation_steps: int = 1,
    num_workers: int = 0,
    collate_fn=None,
    pin_memory: bool = False,
    permutation: Callable[[np.random.Generator], np.ndarray] | None = None,
) -> DataLoader:
    """An endless loader over a `SeededDataset`, from the beginning of iteration ``start_iter``."""
    start = start_iter * total_batch_size
    sampler = StreamSampler(len(dataset), seed, start, permutation=permutation)
    return DataLoader(
        dataset,
        batch_size=local_batch_size(total_batch_size, accumulation_steps),
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate_fn,
        worker_init_fn=quiet_worker,
        # Starting the loader draws a number, which must not come from the run's generator.
        generator=torch.Generator().manual_seed(seed),
        pin_memory=pin_memory,
    )
