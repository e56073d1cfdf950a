"""Files of tensors: written so that a crash cannot damage them, read without running anything."""

import argparse
import contextlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from detectron2.utils.file_io import PathManager

from ..errors import AGAIN, UserError
from .safe_pickle import load_numpy_pickle


def save_atomically(data: Any, path: str | Path) -> None:
    """Writes a file; after a crash the disk holds either the whole new file or the old one.

    A ``.safetensors`` file takes ``{"model": tensors, "meta": plain data}``, a ``.json`` file plain
    data, others anything that `torch.save` takes.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    write_atomically(path, lambda file: _write(data, file, path.suffix))


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes to a temporary name, flushes to disk, renames; see `save_atomically`."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        # torch.save hides a full disk behind an error of its zip writer.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise UserError(
            f"{path} could not be written ({cause}); earlier checkpoints are untouched. Free disk "
            f"space or fix the permissions, {AGAIN}"
        ) from error
    with contextlib.suppress(OSError):  # some network file systems cannot flush a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write(data: Any, file: IO[bytes], suffix: str) -> None:
    if suffix == ".safetensors":  # its metadata maps text to text
        metadata = {"format": "pt", "meta": json.dumps(data.get("meta", {}))}
        file.write(safetensors.torch.save(data["model"], metadata))
    elif suffix == ".json":
        file.write(json.dumps(data, indent=2).encode() + b"\n")
    else:
        torch.save(data, file)


def load_plain(path: str | Path) -> Any:
    """Reads tensors and plain data only, plus the argparse.Namespace of official files.

    A ``.safetensors`` file is returned as ``{"model": tensors, "meta": plain data}``, like a .pth
    file. `load_numpy_pickle` reads a ``.pkl`` of detectron2's model zoo.

    Raises:
        UserError: the file is missing, damaged, or contains anything that would need unpickling.
    """
    # With this suffix, detectron2's configs ask for its matching of similar names: not needed here.
    path = os.path.expanduser(str(path)).removesuffix("?matching_heuristics=True")
    if os.path.isdir(path):
        raise UserError(
            f"{path} is a folder: give a file in it, backbone_final.pth or model_final.pth"
        )
    try:
        path = PathManager.get_local_path(path)
    except Exception as error:  # a download can raise anything
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
            f"{path} is refused: it is damaged, or holds more than tensors and plain data; save "
            "the model's state_dict() instead"
        ) from None
    except Exception as error:  # zip, EOF, safetensors header errors, ...
        raise UserError(
            f"{path} cannot be read as a checkpoint, it may be damaged or cut off "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from None


def _refuse_what_is_no_checkpoint(path: str) -> None:
    """Refuses files that often bear a checkpoint's name; readers would only call them damaged."""
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
    raise UserError(f"{path} is not a checkpoint: it {what}")
