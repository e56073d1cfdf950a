"""Checkpoints: whole or not there, found again, tidied up, never overwritten by accident."""

import contextlib
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers.linear import linear_trainer
from omegaconf import OmegaConf
from torch import nn

from lomar_det.checkpoint.serialization import load_plain, save_atomically
from lomar_det.engine import (
    BestModel,
    Checkpointer,
    StopOnSignal,
    check_output_dir,
    delete_old_run,
)
from lomar_det.engine.hooks import SaveCheckpoints
from lomar_det.errors import UserError

STEPS = 6
BATCHES = torch.randn(STEPS, 4, 3, generator=torch.Generator().manual_seed(0))


def make_run(folder, period=1, max_to_keep=9, milestone_period=None, **settings):
    """A trainer of a linear layer and its checkpointer, as both stages put them together."""
    folder.mkdir(exist_ok=True)
    trainer = linear_trainer([], **settings)
    checkpointer = Checkpointer(trainer.model, str(folder), trainer=trainer)
    save = SaveCheckpoints(checkpointer, period, max_to_keep, milestone_period)
    trainer.register_hooks([save, StopOnSignal(checkpointer)])
    return trainer, checkpointer


def train(folder, stop=STEPS, resume=False, **settings):
    """Trains, until a SIGTERM in the step before ``stop``."""

    def batches():
        for step in range(start, STEPS):
            if step == stop - 1 < STEPS - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield BATCHES[step]

    trainer, checkpointer = make_run(folder, **settings)
    start = checkpointer.resume(STEPS) if resume else 0
    trainer.data_loader = batches()
    with contextlib.suppress(SystemExit):
        trainer.train(start, STEPS)
    return trainer


def names(folder):
    return sorted(path.name for path in Path(folder).glob("model_*"))


def number(*iterations):
    return [f"model_{i:07d}.pth" for i in iterations]


def cut(path):
    path.write_bytes(path.read_bytes()[:-500])


def zero_the_end(path):
    """What a crash leaves on a file system that had not flushed the file's last blocks."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def other_data(path):
    torch.save({"model": {}}, path)


@pytest.mark.parametrize(
    "damage", [cut, zero_the_end, other_data, lambda path: path.write_bytes(b"")]
)
def test_resume_passes_over_a_damaged_checkpoint(tmp_path, lomar_log, damage):
    whole = train(tmp_path)
    damage(tmp_path / "model_final.pth")
    again = train(tmp_path, resume=True)
    assert again.start_iter == STEPS - 1 and torch.equal(again.model.weight, whole.model.weight)
    (warning,) = {r.getMessage() for r in lomar_log.records if r.levelname == "WARNING"}
    assert "model_final.pth" in warning and "model_0000004.pth" in warning


@pytest.mark.parametrize("content", [None, b"", b"gone.pth", b"\xff\x00/../x", b"model_best.pth"])
def test_resume_without_a_usable_last_checkpoint_takes_the_newest(tmp_path, lomar_log, content):
    train(tmp_path)
    (tmp_path / "model_best.pth").write_bytes(b"not for resuming")
    tag = tmp_path / "last_checkpoint"
    tag.unlink() if content is None else tag.write_bytes(content)
    trainer, checkpointer = make_run(tmp_path)
    assert checkpointer.resume(STEPS) == STEPS
    assert "last_checkpoint" in lomar_log.text and "model_final.pth" in lomar_log.text
    assert tag.read_text() == "model_final.pth"


def test_resume_follows_a_good_last_checkpoint_back(tmp_path):
    train(tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth\n")
    assert make_run(tmp_path)[1].resume(STEPS) == 2


def test_resume_with_nothing_left_is_refused(tmp_path):
    train(tmp_path, stop=2)
    for path in tmp_path.glob("model_*.pth"):
        path.write_bytes(b"cut off")
    with pytest.raises(UserError, match="--resume.*model_0000001.pth"):
        train(tmp_path, resume=True)


def test_resume_beyond_the_end_of_the_run_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(UserError, match="model_final.pth.*6.*3.*train.max_iter"):
        make_run(tmp_path)[1].resume(3)


def test_the_last_few_and_the_milestones_stay_over_a_resume(tmp_path):
    settings = dict(max_to_keep=2, milestone_period=3)
    train(tmp_path, stop=5, **settings)
    assert names(tmp_path) == [*number(1), "model_0000002_milestone.pth", *number(3, 4)][1:]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"
    # a run that was killed while it wrote has left this
    (tmp_path / "model_0000005.pth.tmp").write_bytes(b"half")
    train(tmp_path, resume=True, **settings)
    kept = ["model_0000002_milestone.pth", *number(3, 4), "model_final.pth"]
    assert names(tmp_path) == kept
    assert make_run(tmp_path)[1].resume(STEPS) == STEPS


def test_going_back_keeps_what_is_written_now(tmp_path):
    train(tmp_path, max_to_keep=9)
    (tmp_path / "last_checkpoint").write_text("model_0000000.pth")
    train(tmp_path, stop=2, resume=True, max_to_keep=2)
    assert "model_0000001.pth" in names(tmp_path)


def test_averaged_weights_are_written_and_resumed(tmp_path):
    whole = train(tmp_path / "whole", ema_decay=0.9)
    train(tmp_path / "cut", stop=3, ema_decay=0.9)
    cut = train(tmp_path / "cut", resume=True, ema_decay=0.9)
    assert not torch.equal(whole.ema.module.weight, whole.model.weight)
    assert torch.equal(cut.ema.module.weight, whole.ema.module.weight)
    final = load_plain(tmp_path / "cut" / "model_final_ema.pth")
    assert torch.equal(final["model"]["weight"], whole.eval_model.weight)


def test_averaging_can_begin_at_a_resume(tmp_path, lomar_log):
    train(tmp_path, stop=3)
    trainer, checkpointer = make_run(tmp_path, ema_decay=0.9)
    checkpointer.resume(STEPS)
    assert torch.equal(trainer.ema.module.weight, trainer.model.weight)
    assert "averag" in lomar_log.text


@pytest.mark.parametrize(
    "before, now", [(torch.float32, torch.float16), (torch.float16, torch.float32)]
)
def test_precision_may_change_at_a_resume(tmp_path, before, now):
    train(tmp_path, stop=3, dtype=before)
    trainer = train(tmp_path, resume=True, dtype=now)
    assert trainer.start_iter == 3 and trainer.grad_scaler.is_enabled() == (now == torch.float16)


def test_kill_in_the_middle_of_a_write(tmp_path, monkeypatch):
    """A real process, killed for real while half of a checkpoint is on disk."""
    whole = train(tmp_path / "whole")
    folder = tmp_path / "cut"
    trainer = train(folder, stop=3)
    save, half = torch.save, folder / "model_0000003.pth.tmp"

    def save_slowly(data, file):
        save(data, file)
        file.truncate(file.tell() // 2)
        file.flush()
        time.sleep(60)

    def write():
        monkeypatch.setattr(torch, "save", save_slowly)
        trainer_checkpointer = Checkpointer(trainer.model, str(folder), trainer=trainer)
        trainer_checkpointer.save("model_0000003", iteration=3)

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    deadline = time.monotonic() + 30
    while not (half.is_file() and half.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert half.is_file() and not half.with_suffix("").is_file()
    again = train(folder, resume=True)
    assert again.start_iter == 3 and torch.equal(again.model.weight, whole.model.weight)
    assert not list(folder.glob("*.tmp"))


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path):
    """The kernel refuses to let the file grow, as it does on a full disk."""
    path = tmp_path / "model.pth"
    save_atomically({"a": torch.arange(3)}, path)

    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            save_atomically({"a": torch.zeros(100_000)}, path)
        except UserError as error:
            (tmp_path / "message").write_text(str(error))

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    process.join()
    assert process.exitcode == 0
    message = (tmp_path / "message").read_text()
    assert "model.pth" in message and "Errno 27" in message and "--resume" in message
    assert load_plain(path)["a"].tolist() == [0, 1, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["message", "model.pth"]


def test_a_run_is_not_overwritten_by_accident(tmp_path):
    settings = OmegaConf.create({"output_dir": str(tmp_path), "overwrite": False})
    check_output_dir(settings, resume=False)
    train(tmp_path, stop=2)
    (tmp_path / "mine.pth").write_bytes(b"")
    (tmp_path / "metrics.json").write_text("{}")
    check_output_dir(settings, resume=True)
    with pytest.raises(UserError, match="--resume.*train.output_dir.*train.overwrite=True"):
        check_output_dir(settings, resume=False)
    settings.overwrite = True
    check_output_dir(settings, resume=False)
    assert len(names(tmp_path)) == 2  # not yet
    delete_old_run(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.pth"]


def test_the_best_weights_are_kept_over_a_resume(tmp_path, lomar_log):
    checkpointer = make_run(tmp_path)[1]
    path, model = tmp_path / "model_best.pth", nn.Linear(3, 1)

    def update(value, metric="bbox/AP"):
        nn.init.constant_(model.weight, 0 if value is None else value)
        results = {"bbox": {"AP": value, "AP50": 1.0}} if value is not None else {}
        BestModel(checkpointer, metric).update(results, model, iterations=7)
        return load_plain(path)["model"]["weight"][0, 0].item() if path.is_file() else None

    assert update(float("nan")) is None and update(None) is None
    assert update(2.0) == 2 and update(1.0) == 2 and update(float("nan")) == 2 and update(3.0) == 3
    assert load_plain(path)["meta"] == {"metric": "bbox/AP", "value": 3.0, "iterations": 7}
    assert not (tmp_path / "last_checkpoint").exists()  # nothing to resume from
    assert update(9.0, metric=None) == 3 and update(9.0, metric="segm/AP") == 3
    assert "segm/AP" in lomar_log.text and "bbox/AP50" in lomar_log.text
    assert update(1.0, metric="bbox/AP50") == 1  # another metric: nothing to compare with
    path.write_bytes(b"cut off")
    assert update(0.5) == 0.5
