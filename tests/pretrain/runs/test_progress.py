"""What a pretraining run says of its progress."""

from types import SimpleNamespace

import pytest

from lomar_pretrain.runs.progress import NameTheLimit


@pytest.mark.parametrize(
    ("waiting", "words"), [(0.6, "data.num_workers"), (0.05, "The model is the limit")]
)
def test_the_limit_of_the_speed_is_named_once(lomar_log, waiting, words):
    hook = NameTheLimit(num_workers=3)
    storage = SimpleNamespace(latest=lambda: {"data_wait": (waiting, 0)})
    for iteration in range(10, 200):  # resumed after ten
        hook.trainer = SimpleNamespace(iter=iteration, start_iter=10, storage=storage)
        hook.after_step()
    (message,) = {record.getMessage() for record in lomar_log.records}
    assert words in message
