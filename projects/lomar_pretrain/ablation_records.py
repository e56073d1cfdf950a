"""What an ablation leaves in its folders, to know later what is done and with which settings."""

import json
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from lomar_det.engine import save_atomically
from lomar_det.engine.checkpointer import RESUMABLE
from lomar_det.errors import UserError

# Settings that change how a run goes, but not what comes out.
_WITHOUT_EFFECT = ("num_workers", "log_period", "wandb")


def read_record(path: Path) -> dict | None:
    """None where there is no such file."""
    return json.loads(path.read_text()) if path.is_file() else None


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
