"""What an ablation leaves in its folders, to know later what is done and with which settings."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from detectron2.utils import comm

from lomar_det.checkpoint.serialization import save_atomically
from lomar_det.engine.checkpointer import RESUMABLE
from lomar_det.errors import UserError

# Settings that change how a run goes, but not what comes out.
_WITHOUT_EFFECT = ("max_bad_fraction", "num_workers", "log_period", "wandb")


# What later commands need of each kind of record.
_KEYS = {
    "calibration.json": ("settings", "steps", "seconds_per_step"),
    "run.json": ("settings", "seconds"),
    "cell.json": ("cell", "seed", "pretrain", "downstream", "machine", "lomar_det", "date"),
}


def read_record(path: Path) -> dict | None:
    """None where there is no such file.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        missing = [key for key in _KEYS[path.name] if key not in record]
    except (OSError, ValueError, TypeError) as error:
        problem = str(error)
    else:
        if not missing:
            return record
        problem = f"it has no {missing[0]}"
    raise UserError(
        f"{path} cannot be used ({problem}); put it back as it was, or delete it: the same "
        "command then makes anew what it was about"
    )


def write_record(record: dict, path: Path) -> None:
    """By the main process alone."""
    if comm.is_main_process():
        save_atomically(record, path)


def read_begun(folder: Path) -> dict | None:
    """The record of a run that is done, or has a checkpoint to go on from."""
    record = read_record(folder / "run.json")
    if record is None or "date" in record:
        return record
    has_checkpoint = any(RESUMABLE.fullmatch(file.name) for file in folder.iterdir())
    return record if has_checkpoint else None


def make_lock(folder: Path, setting: str) -> IO[str]:
    """Makes a folder, and in it the file by which commands keep out of each other's way.

    Args:
        folder: Where a run is to be.
        setting: What chooses it, such as ``run.output_dir``.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / "lock").open("a")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}; choose another {setting}") from None


@contextlib.contextmanager
def alone_in(folder: Path, setting: str) -> Iterator[None]:
    """Keeps other commands out of a folder, for as long as this process lives.

    The main process holds the lock; its file stays.

    Raises:
        UserError: another command is at work there; as `make_lock`.
    """
    if not comm.is_main_process():
        yield
        return
    with make_lock(folder, setting) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another command is at work in {folder}: when it has ended, the same command "
                f"goes on from what it made; or choose another {setting}"
            ) from None
        except OSError:  # a file system without locks: as if alone
            pass
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_UN)  # a loader's processes have the file open, too


def refuse_changes(then: dict, now: dict, folder: Path, setting: str) -> None:
    """A folder holds runs of one and the same settings.

    Args:
        then: Settings that the folder was made with, nested.
        now: Those that are asked for.
        folder: Named in the error.
        setting: What chooses the folder, such as ``run.output_dir``.

    Raises:
        UserError: they differ in more than what changes no result.
    """
    then, now = _flatten(then), _flatten(now)
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            raise UserError(
                f"{folder} was run with other settings: {key} was {then.get(key)}, and is "
                f"{now.get(key)} now; go back to them, choose another {setting}, or delete that "
                "folder to run it again"
            )


def _flatten(settings: dict, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names, without those that change no result."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if key in _WITHOUT_EFFECT:
            continue
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
