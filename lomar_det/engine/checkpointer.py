"""Checkpoints that a crash cannot damage, and that load without unpickling anything but data."""

import argparse
import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

from ..errors import UserError
from .safe_pickle import load_numpy_pickle

logger = logging.getLogger(__name__)


def save_atomically(data: Any, path: str | Path) -> None:
    """Writes to a temporary name, flushes to disk, renames: the old file stays until then.

    A ``.safetensors`` file takes ``{"model": tensors, "meta": plain data}``.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            _write(data, file, path.suffix)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into RuntimeError
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path} could not be written ({error}); earlier checkpoints are untouched. Free disk "
            "space or fix the permissions, then continue with --resume"
        ) from error


def _write(data: Any, file: BinaryIO, suffix: str) -> None:
    if suffix == ".safetensors":  # its metadata is text by text
        metadata = {"format": "pt", "meta": json.dumps(data.get("meta", {}))}
        file.write(safetensors.torch.save(data["model"], metadata))
    else:
        torch.save(data, file)


def load_plain(path: str | Path) -> Any:
    """`torch.load` for tensors and plain data only, plus the argparse.Namespace of official files.

    A ``.safetensors`` file comes as ``{"model": tensors, "meta": plain data}``, like its .pth twin;
    a ``.pkl`` of detectron2's model zoo as in `load_numpy_pickle`.

    Raises:
        UserError: the file is missing, damaged, or contains anything that would need unpickling.
    """
    # detectron2's configs ask like this for its matching by similar names; ours needs no hint
    path = os.path.expanduser(str(path)).removesuffix("?matching_heuristics=True")
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
    _refuse_what_is_no_checkpoint(path)
    try:
        if path.endswith(".safetensors"):
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
            meta = json.loads(metadata.get("meta", "{}"))
            return {"model": safetensors.torch.load_file(path), "meta": meta}
        if path.endswith(".pkl"):
            with open(path, "rb") as file:
                return load_numpy_pickle(file)
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


def _refuse_what_is_no_checkpoint(path: str) -> None:
    """Files that end up under a checkpoint's name: readers would only call them damaged."""
    try:
        with open(path, "rb") as file:
            start = file.read(256)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not start:
        what = "is empty; copy or download it again"
    elif start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        what = "is a web page; download the file itself"
    elif start.startswith(b"version https://git-lfs"):
        what = "is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    elif start.startswith(b"PK") and start[30:].partition(b".npy")[1]:
        what = "is a numpy archive (.npz); load it with timm and save the model's state_dict()"
    else:
        return
    raise UserError(f"{path} is no checkpoint: it {what}")


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer with atomic writes and `load_plain`."""

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data |= {key: item.state_dict() for key, item in self.checkpointables.items()}
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
