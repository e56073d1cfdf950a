"""The checkpoints of a run: writing them, finding the last one, resuming from it."""

import logging
import math
import re
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from ..checkpoint.serialization import load_plain, save_atomically, write_atomically
from ..config.settings import RunSettings
from ..data.classes import check_class_names
from ..errors import UserError
from .schedules import BY_THE_CLOCK

logger = logging.getLogger(__name__)

# Files to resume from; model_best.pth and model_final_ema.pth hold weights alone.
RESUMABLE = re.compile(r"model_(\d{7}(_milestone)?|final)\.pth")


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer with atomic writes and `load_plain`.

    Args:
        meta: Plain data about the model, which every file holds as ``meta``.
    """

    def __init__(self, model, save_dir: str = "", *, meta: dict | None = None, **kwargs: Any):
        super().__init__(model, save_dir, **kwargs)
        self.meta = meta

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``name.pth``: the model, all that a resume needs, ``meta`` and ``kwargs``."""
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

    def resume(self, max_iter: int) -> int:
        """Loads the last checkpoint into the model and the trainer.

        A damaged checkpoint is skipped with a warning; the one before it is loaded.

        Args:
            max_iter: Length of the run by the present config.

        Returns:
            The iteration to start with; ``max_iter`` if the run is finished.

        Raises:
            UserError: there is no checkpoint, none can be read, or it is of a run with other
                settings. Nothing has been written then.
        """
        # One process chooses the file, so that all processes load the same one.
        path, data = self._last_good() if comm.is_main_process() else (None, None)
        path = comm.all_gather(path)[0]
        data = data or load_plain(path)
        try:
            given = (self.meta or {}).get("classes") or []
            check_class_names((data.get("meta") or {}).get("classes"), given, path)
            self._log_incompatible_keys(self._load_model(data))
            for key, item in self.checkpointables.items():
                item.load_state_dict(data[key])
        except (UserError, KeyError, ValueError) as error:
            raise UserError(
                f"--resume: {path} cannot be continued ({error}). To change settings, start "
                "without --resume in another train.output_dir"
            ) from None
        if comm.is_main_process():
            self.tag_last_checkpoint(Path(path).name)  # the tag may name a damaged file
        start_iter = data["iteration"] + 1
        if start_iter > max_iter:
            raise UserError(
                f"--resume: {path} is of iteration {start_iter}, beyond the {max_iter} of this "
                "config; raise train.epochs or train.max_iter to go on"
            )
        length = "" if max_iter == BY_THE_CLOCK else f" of {max_iter}"
        logger.info("Resumed after %d%s iterations (%s)", start_iter, length, path)
        return start_iter

    def _last_good(self) -> tuple[str, dict]:
        """Path and content of the file that ``last_checkpoint`` names, else of the newest one.

        Files that cannot be read are skipped.
        """
        folder = Path(self.save_dir)
        files = [path for path in folder.glob("model_*.pth") if RESUMABLE.fullmatch(path.name)]
        if not files:
            raise UserError(
                f"--resume: there is no checkpoint in {folder}; set train.output_dir to the folder "
                "of the run, or start without --resume"
            )
        problems = []
        tag = folder / "last_checkpoint"
        named = folder / tag.read_text(errors="replace").strip() if tag.is_file() else None
        if named not in files:
            problems.append(f"{tag} is missing, or names no checkpoint")
        for path in sorted(files, key=lambda path: (path == named, _iteration(path)), reverse=True):
            try:
                data = load_plain(path)
                if not {"model", "iteration", *self.checkpointables} <= set(data):
                    raise UserError(f"{path} is not a checkpoint of a run")
            except UserError as error:
                problems.append(str(error))
                continue
            if problems:
                logger.warning("%s. Continuing from %s", "; ".join(problems), path)
            return str(path), data
        raise UserError(f"--resume: no checkpoint in {folder} can be read: " + "; ".join(problems))

    def _log_incompatible_keys(self, incompatible) -> None:
        """Refuses a missing or unknown tensor, which fvcore would only log."""
        wrong = [key for key, *_ in incompatible.incorrect_shapes]
        wrong += [*incompatible.missing_keys, *incompatible.unexpected_keys]
        if wrong:
            raise UserError(
                f"it holds another model: {len(wrong)} tensors differ, first {wrong[0]}"
            )

    def save_iteration(self, iteration: int) -> None:
        """Writes a checkpoint to resume from; called before the run is ended early."""
        self.save(f"model_{iteration:07d}", iteration=iteration)
        comm.synchronize()  # the launcher ends all processes as soon as one ends

    def save_weights(self, name: str, model: nn.Module, meta: dict) -> None:
        """Writes weights and ``meta``: a file for ``train.init_checkpoint``, not for resuming."""
        if self.save_to_disk:
            path = Path(self.save_dir, f"{name}.pth")
            logger.info("Saving weights to %s", path)
            save_atomically({"model": model.state_dict(), "meta": (self.meta or {}) | meta}, path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Writes the name of the last checkpoint to the file ``last_checkpoint``."""
        tag = Path(self.save_dir, "last_checkpoint")
        write_atomically(tag, lambda file: file.write(last_filename_basename.encode()))

    def _torch_load(self, path: str) -> Any:
        return load_plain(path)


def _iteration(path: Path) -> int:
    """The iteration of a checkpoint, read without its tensors; -1 if the file is damaged."""
    try:
        return torch.load(path, mmap=True, weights_only=True)["iteration"]
    except Exception:  # a damaged file can raise anything
        return -1


class BestModel:
    """Keeps ``model_best.pth``: the evaluated weights with the highest value of a metric so far.

    Two things differ from detectron2's `BestCheckpointer`. The file holds the best value, so the
    value survives a resume. And no run resumes from this file.

    Args:
        checkpointer: Writes the file.
        metric: Name as in ``metrics.json``, such as ``bbox/AP``; None or "" writes no file.
    """

    def __init__(self, checkpointer: Checkpointer, metric: str | None):
        self.checkpointer, self.metric = checkpointer, metric

    def update(self, results: dict, model: nn.Module, iterations: int) -> None:
        """Keeps ``model``, evaluated after ``iterations``, if its results are the best so far."""
        if not self.metric or not results or not comm.is_main_process():
            return
        values = flatten_results_dict(results)
        if self.metric not in values:
            logger.warning(
                "model_best.pth is not written: best_metric=%s is none of the results: %s",
                self.metric,
                ", ".join(values),
            )
            return
        value, best = float(values[self.metric]), self._best_so_far()
        if not math.isfinite(value) or (best is not None and value <= best):
            return
        logger.info("Best %s so far: %.4g", self.metric, value)
        meta = {"metric": self.metric, "value": value, "iterations": iterations}
        self.checkpointer.save_weights("model_best", model, meta)

    def _best_so_far(self) -> float | None:
        path = Path(self.checkpointer.save_dir, "model_best.pth")
        if not path.is_file():
            return None
        try:
            meta = torch.load(path, mmap=True, weights_only=True)["meta"]
        except Exception as error:  # a damaged file can raise anything
            logger.warning("%s cannot be read and will be replaced: %s", path, error)
            return None
        return meta["value"] if meta["metric"] == self.metric else None


def check_output_dir(settings: RunSettings, resume: bool) -> bool:
    """Refuses an output folder that holds another run, unless it is resumed or overwritten.

    With ``--resume`` and no checkpoint, the run starts at its beginning, with a warning, as in
    detectron2. So the script of a job that may be requeued can always pass ``--resume``.

    Args:
        settings: The ``train`` section: ``output_dir`` and ``overwrite``.
        resume: Continue the run in the folder.

    Returns:
        Whether there is a run to continue, the same in all processes.

    Raises:
        UserError: the folder holds checkpoints, and neither ``resume`` nor ``train.overwrite`` is
            set.
    """
    saved = [path.name for path in _files_of_a_run(settings.output_dir) if path.suffix == ".pth"]
    if resume:
        found = comm.all_gather(any(map(RESUMABLE.fullmatch, saved)))[0]
        if not found:
            logger.warning(
                "--resume: there is no checkpoint in %s, the run starts at its beginning",
                settings.output_dir,
            )
        return found
    if saved and not settings.overwrite:
        raise UserError(
            f"train.output_dir={settings.output_dir} holds a run already ({', '.join(saved[:3])}): "
            "continue it with --resume, choose another train.output_dir, or delete it and start "
            "over with train.overwrite=True"
        )
    return False


def delete_old_run(settings: RunSettings) -> None:
    """Deletes an earlier run's files if ``train.overwrite`` is set; called after all checks."""
    if settings.overwrite and comm.is_main_process():
        for path in _files_of_a_run(settings.output_dir):
            logger.info("train.overwrite: deleting %s", path)
            path.unlink()


def _files_of_a_run(folder: str | Path) -> list[Path]:
    """The files of a run in a folder, which would mix with those of the next run."""
    names = r"model_(\d{7}(_milestone)?|final(_ema)?|best)\.pth|backbone_final\..*|last_checkpoint"
    names += r"|metrics\.json|wandb_run\.txt|events\.out\.tfevents\..*"
    return [path for path in sorted(Path(folder).iterdir()) if re.fullmatch(names, path.name)]
