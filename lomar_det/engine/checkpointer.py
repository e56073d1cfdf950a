"""Checkpoints that a crash cannot damage, and that load without unpickling anything but data."""

import argparse
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

from ..errors import UserError

logger = logging.getLogger(__name__)


def save_atomically(data: Any, path: str | Path) -> None:
    """Writes to a temporary name, flushes to disk, renames: the old file stays until then."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(data, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into RuntimeError
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path} could not be written ({error}); earlier checkpoints are untouched. Free disk "
            "space or fix the permissions, then continue with --resume"
        ) from error


def load_plain(path: str | Path) -> Any:
    """`torch.load` for tensors and plain data only, plus the argparse.Namespace of official files.

    Raises:
        UserError: the file is missing, damaged, or contains anything that would need unpickling.
    """
    path = os.path.expanduser(str(path))
    if os.path.isdir(path):
        raise UserError(
            f"{path} is a folder: give a file in it, backbone_final.pth or model_final.pth"
        )
    try:
        path = PathManager.get_local_path(path)
    except Exception as error:  # whatever a download can fail with
        raise UserError(f"the checkpoint {path} cannot be fetched: {error}") from None
    if not os.path.isfile(path):
        raise UserError(f"the checkpoint {path} does not exist")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is refused: it is damaged, or not a checkpoint of tensors and plain data "
            "alone; save the model's state_dict()"
        ) from None
    except Exception as error:  # zip, EOF, safetensors header errors, ...
        raise UserError(
            f"{path} cannot be read as a checkpoint, it may be damaged or cut off "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from None


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer with atomic writes and `load_plain`.

    Args:
        meta: Plain data that every file says about itself, under ``meta``.
    """

    def __init__(self, model, save_dir: str = "", *, meta: dict | None = None, **kwargs: Any):
        super().__init__(model, save_dir, **kwargs)
        self.meta = meta

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        if self.meta is not None:
            data["meta"] = self.meta
        path = Path(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        save_atomically(data | kwargs, path)
        self.tag_last_checkpoint(path.name)

    def resume(self) -> None:
        """Continues from the last checkpoint, everything included.

        Raises:
            UserError: there is none, it is damaged, or it is of a run with other settings; nothing
                has been written then.
        """
        folder = Path(self.save_dir)
        saved = ", ".join(sorted(path.name for path in folder.glob("model_*.pth"))) or "none"
        if not self.has_checkpoint():
            raise UserError(
                f"--resume: there is no checkpoint in {folder}; set train.output_dir to the run's, "
                "or start without --resume"
            )
        path = self.get_checkpoint_file()
        try:
            self.load(str(path))
        except (UserError, AssertionError, KeyError, ValueError) as error:
            raise UserError(
                f"--resume: {path} cannot be continued ({error}). With other settings, start "
                "without --resume in another train.output_dir; if the file is damaged, write the "
                f"name of an earlier one into {folder / 'last_checkpoint'} (there: {saved})"
            ) from None

    def _log_incompatible_keys(self, incompatible) -> None:
        """A resumed run must get every tensor: a part at random would be silent."""
        wrong = [key for key, *_ in incompatible.incorrect_shapes]
        wrong += [*incompatible.missing_keys, *incompatible.unexpected_keys]
        if wrong:
            raise UserError(
                f"it is of another model: {len(wrong)} tensors differ, first {wrong[0]}"
            )

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        tag = Path(self.save_dir, "last_checkpoint")
        temporary = tag.with_name("last_checkpoint.tmp")
        temporary.write_text(last_filename_basename)
        os.replace(temporary, tag)

    def _torch_load(self, path: str) -> Any:
        return load_plain(path)
