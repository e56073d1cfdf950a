"""`fit`: a whole run on a linear layer, cut short, continued and finished."""

import os
import signal

import pytest
import torch
from detectron2.engine import HookBase
from helpers.common import read_metrics
from helpers.linear import SCHEDULE, endless_batches, fit_linear

from lomar_det.checkpoint.serialization import load_plain
from lomar_det.errors import UserError


class Evaluations:
    """Scores in their order; an error among them is raised. Keeps the weights that it is given."""

    def __init__(self, *scores):
        self.scores, self.weights = list(scores), []

    def __call__(self, model):
        self.weights.append(model.weight.detach().clone())
        score = self.scores[len(self.weights) - 1]
        if isinstance(score, Exception):
            raise score
        return {"task": {"score": score}}


def sigterm_in_step(stop):
    """Batches, and a SIGTERM while that of step ``stop`` is loaded."""

    def make_loader(start_iter, accumulation_steps):
        batches = endless_batches(start_iter, accumulation_steps)
        for i, batch in enumerate(batches, start_iter):
            if i == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    return make_loader


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("*.pth"))


def assert_same_end(first, second):
    """Weights, averages and optimizer, bit for bit."""
    a, b = (load_plain(folder / "model_final.pth") for folder in (first, second))
    assert torch.equal(a["model"]["weight"], b["model"]["weight"])
    assert not torch.equal(a["model"]["weight"], a["trainer"]["ema"]["weight"])
    for key in ("ema", "optimizer"):
        torch.testing.assert_close(a["trainer"][key], b["trainer"][key], rtol=0, atol=0)


def test_a_run_from_its_first_step_to_its_files(tmp_path):
    asked, saved, evaluate = [], [], Evaluations(1.0, 3.0, 2.0)

    def make_loader(start_iter, accumulation_steps):
        asked.append((start_iter, accumulation_steps))
        return endless_batches(start_iter, accumulation_steps)

    class Watch(HookBase):
        def after_step(self):
            self.trainer.storage.put_scalar("watched", self.trainer.iter)

    fitted = fit_linear(
        tmp_path,
        plan={"eval_period": 2, "checkpoint_period": 4},
        make_loader=make_loader,
        save_config=lambda: saved.append("config"),
        evaluate=evaluate,
        hooks=[Watch()],
        meta={"classes": ["disc"]},
    )
    assert asked == [(0, 1)] and saved == ["config"]
    assert fitted.trained and fitted.iterations == 6
    assert fitted.results == {"task": {"score": 2.0}} and len(evaluate.weights) == 3
    written = ["model_0000003.pth", "model_best.pth", "model_final.pth", "model_final_ema.pth"]
    assert checkpoints(tmp_path) == written
    final, best = (load_plain(tmp_path / f"model_{name}.pth") for name in ("final", "best"))
    assert final["iteration"] == 5 and final["meta"] == {"classes": ["disc"]}
    # averaged weights are evaluated, kept and handed on
    assert torch.equal(fitted.model.weight, evaluate.weights[-1])
    assert torch.equal(fitted.model.weight, final["trainer"]["ema"]["weight"])
    assert torch.equal(best["model"]["weight"], evaluate.weights[1])
    kept = {"metric": "task/score", "value": 3.0, "iterations": 4}
    assert best["meta"] == kept | {"classes": ["disc"]}
    lines = read_metrics(tmp_path)
    assert [line["lr"] for line in lines[:6]] == [0.1 * SCHEDULE(i / 6) for i in range(6)]
    assert [line["watched"] for line in lines[:6]] == list(range(6))
    scores = {line["iteration"]: line["task/score"] for line in lines if "task/score" in line}
    assert scores == {1: 1.0, 3: 3.0, 6: 2.0}


def test_a_run_that_is_stopped_goes_on_bit_for_bit(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = {"settings": {"clip_grad_norm": 1.0}}
    fit_linear(whole, **settings)
    with pytest.raises(SystemExit) as stop:
        fit_linear(cut, make_loader=sigterm_in_step(2), **settings)
    assert stop.value.code == 128 + signal.SIGTERM and checkpoints(cut) == ["model_0000002.pth"]
    fitted = fit_linear(cut, resume=True, **settings)
    assert fitted.trained and fitted.iterations == 6
    assert_same_end(whole, cut)
    first, second = (
        [(line["iteration"], line["total_loss"], line["lr"]) for line in read_metrics(folder)]
        for folder in (whole, cut)
    )
    assert first == second and len(first) == 6


def test_an_evaluation_that_fails_costs_no_step(tmp_path):
    """The disk of the validation images is gone, say; the weights are not."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    plan = {"eval_period": 3}
    fit_linear(whole, plan=plan, evaluate=Evaluations(1.0, 2.0))
    with pytest.raises(UserError, match="gone"):
        fit_linear(cut, plan=plan, evaluate=Evaluations(UserError("gone")))
    assert checkpoints(cut) == ["model_0000002.pth"]
    with pytest.raises(UserError, match="gone"):  # now in the last one
        fit_linear(cut, plan=plan, resume=True, evaluate=Evaluations(UserError("gone")))
    assert checkpoints(cut) == ["model_0000002.pth", "model_final.pth", "model_final_ema.pth"]
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL  # the other hooks have ended
    fitted = fit_linear(cut, plan=plan, resume=True, evaluate=Evaluations(2.0))
    assert not fitted.trained and "model_best.pth" in checkpoints(cut)
    assert_same_end(whole, cut)


def test_a_finished_run_is_only_evaluated(tmp_path):
    first = Evaluations(2.0)
    trained = fit_linear(tmp_path, evaluate=first)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def never(*_, **__):
        raise AssertionError("a finished run needs no data, and writes no config")

    again = Evaluations(2.0)
    fitted = fit_linear(
        tmp_path,
        resume=True,
        evaluate=again,
        make_loader=never,
        save_config=never,
        compute_losses=never,
    )
    assert (fitted.trained, fitted.iterations) == (False, 6) and trained.trained
    assert fitted.results == trained.results
    assert load_plain(tmp_path / "model_best.pth")["meta"]["iterations"] == 6
    assert torch.equal(again.weights[0], first.weights[0]) and len(again.weights) == 1
    assert torch.equal(fitted.model.weight, trained.model.weight)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_run_is_deleted_once_all_is_known_to_be_right(tmp_path):
    fit_linear(tmp_path)
    overwrite = {"output_dir": str(tmp_path), "overwrite": True, "ema_decay": None}

    def broken(**_):
        raise UserError("no images")

    with pytest.raises(UserError, match="no images"):
        fit_linear(tmp_path, settings=overwrite, make_loader=broken)
    assert "model_final.pth" in checkpoints(tmp_path)
    fit_linear(tmp_path, settings=overwrite)
    assert checkpoints(tmp_path) == ["model_final.pth"] and len(read_metrics(tmp_path)) == 6
