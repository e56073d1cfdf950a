"""The sample stream: resumable, shared out, independent of workers."""

import random

import numpy as np
import pytest
import torch

from lomar_det.data import stream
from lomar_det.data.stream import SeededDataset, StreamSampler, seeded, stream_loader
from lomar_det.errors import UserError


def draw(sample):
    return sample, random.random(), float(np.random.rand()), float(torch.rand(()))


def take(count, start_iter=0, num_workers=0, size=7):
    dataset = SeededDataset(list(range(size)), draw, seed=3)
    loader = stream_loader(
        dataset, 4, seed=3, start_iter=start_iter, num_workers=num_workers, collate_fn=list
    )
    iterator = iter(loader)
    return [next(iterator) for _ in range(count)]


def test_a_stream_started_later_continues_exactly():
    assert take(9)[4:] == take(5, start_iter=4)


def test_workers_change_nothing():
    assert take(6) == take(6, num_workers=2)


def test_every_epoch_has_every_sample_in_another_order():
    samples = [sample for batch in take(7) for sample, *_ in batch]  # 4 epochs of 7
    epochs = [samples[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_processes_share_one_stream(monkeypatch):
    def first(rank, world):
        monkeypatch.setattr(stream, "get_rank", lambda: rank)
        monkeypatch.setattr(stream, "get_world_size", lambda: world)
        iterator = iter(StreamSampler(5, seed=1))
        return [next(iterator) for _ in range(12 // world)]

    whole, parts = first(0, 1), [first(rank, 3) for rank in range(3)]
    assert [pair for group in zip(*parts, strict=True) for pair in group] == whole


def test_seeding_a_sample_leaves_the_callers_generators_alone():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with seeded(5):
        first = draw(0)
    with seeded(5):
        assert draw(0) == first
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_unusable_samples_are_replaced_until_nothing_is_left():
    some = SeededDataset(list(range(10)), lambda s: None if s < 5 else s, seed=0)
    assert {some[(i, i)] for i in range(10)} <= set(range(5, 10))
    with pytest.raises(UserError, match="100"):
        SeededDataset([1], lambda s: None, seed=0)[(0, 0)]


@pytest.mark.parametrize(
    "total, processes, limit, steps",
    [
        (4096, 1, 256, 16),
        (4096, 8, 256, 2),
        (4096, 8, 512, 1),
        (4096, 32, 256, 1),
        (4096, 1, 300, 16),  # 4096 / 14 would fit but is not even
        (12, 2, 4, 2),
        (7, 1, 2, 7),
        (1, 1, 256, 1),
    ],
)
def test_the_fewest_even_passes_that_fit(monkeypatch, total, processes, limit, steps):
    monkeypatch.setattr(stream, "get_world_size", lambda: processes)
    assert stream.count_accumulation_steps(total, limit) == steps
    assert total // (processes * steps) <= limit and total % (processes * steps) == 0


def test_a_given_number_of_passes_is_kept(monkeypatch):
    assert stream.count_accumulation_steps(12, 1, accumulation_steps=3) == 3
    monkeypatch.setattr(stream, "get_world_size", lambda: 5)
    for steps in ("auto", 2):
        with pytest.raises(UserError, match="12.*5"):
            stream.count_accumulation_steps(12, 4, steps)


@pytest.mark.parametrize("total, steps", [(5, 2), (0, 1), (4, 3)])
def test_batches_that_do_not_divide_are_refused(total, steps):
    with pytest.raises(UserError, match=str(total)):
        stream.local_batch_size(total, steps)
