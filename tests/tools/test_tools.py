"""The two tools end to end on small images: results, resume, evaluation, mixed sizes."""

import json
import math
import os
import re
import signal

import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling import GeneralizedRCNN
from helpers.common import (
    TINY_DETECTOR,
    TINY_PRETRAIN,
    data_settings,
    drop_masks,
    edit_json,
    read_metrics,
    run_two_processes,
    tool_args,
)

from lomar_det.checkpoint.serialization import load_plain
from lomar_det.config.lazy import load_config
from lomar_det.data import configure_data
from lomar_det.detection import train as detection
from lomar_det.engine.hooks import SeedEachStep
from lomar_det.errors import UserError
from lomar_pretrain import LoMaR
from lomar_pretrain.runs import pretrain as pretraining

pytestmark = pytest.mark.run

PRETRAIN, DETECT = "pretrain/lomar_vit_tiny.py", "custom/mask_rcnn_lomar_vit_tiny.py"
SIX = {"AP", "AP50", "AP75", "APs", "APm", "APl"}


def pretrain(images, output, *opts, resume=False):
    settings = [*TINY_PRETRAIN, f"data.path={images}", f"train.output_dir={output}", *opts]
    return pretraining.main(tool_args(PRETRAIN, *settings, resume=resume))


def detect(drawn_set, output, *opts, **flags):
    settings = [*TINY_DETECTOR, *data_settings(*drawn_set), f"train.output_dir={output}", *opts]
    return detection.main(tool_args(DETECT, *settings, **flags))


def read_losses(output):
    losses = {}
    for line in read_metrics(output):
        parts = [key for key in line if "loss" in key]
        if parts:
            losses[line["iteration"]] = {key: line[key] for key in parts}
    return losses


def rewind(output, checkpoint):
    """As if the run had been killed right after this checkpoint."""
    for path in output.glob("model_*.pth"):
        if path.name > checkpoint:
            path.unlink()
    (output / "metrics.json").unlink()
    (output / "last_checkpoint").write_text(checkpoint)


def assert_same_run(first, second):
    """Weights, averaged weights and the optimizer's state at the end, bit for bit."""
    a, b = load_plain(first / "model_final.pth"), load_plain(second / "model_final.pth")
    for key in ("ema", "optimizer"):
        torch.testing.assert_close(a["trainer"][key], b["trainer"][key], rtol=0, atol=0)
    torch.testing.assert_close(a["model"], b["model"], rtol=0, atol=0)
    assert not torch.equal(*(next(iter(part.values())) for part in (a["model"], ema(first))))


def ema(output):
    return load_plain(output / "model_final_ema.pth")["model"]


@pytest.fixture
def sigterm_in_step_2(monkeypatch):
    """Every run gets SIGTERM in its third step, unless it has been told to go on."""
    before_step = SeedEachStep.before_step

    def and_signal(hook):
        before_step(hook)
        if hook.trainer.iter == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(SeedEachStep, "before_step", and_signal)
        yield patch


def test_pretraining_writes_what_the_next_stage_needs(drawn_set, tmp_path):
    opts = ["train.epochs=2", "train.picture_epochs=2"]
    backbone = pretrain(drawn_set[1], tmp_path / "out", *opts)
    data = load_plain(backbone)
    assert data["meta"]["method"] == "lomar" and data["meta"]["embed_dim"] == 32
    assert "blocks.1.attn.rpe_k.lookup_table_weight" in data["model"]
    for name in ("backbone_final.safetensors", "loss.png", "reconstruction.png", "config.yaml"):
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_pretraining_stops_and_resumes_bit_for_bit(drawn_set, tmp_path, sigterm_in_step_2):
    """In the middle of an epoch, with accumulated gradients and averaged weights."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = ["train.epochs=6", "train.accumulation_steps=2", "train.ema_decay=0.9"]
    settings.append("train.picture_epochs=0")
    with pytest.raises(SystemExit) as stop:
        pretrain(drawn_set[1], cut, *settings)
    assert stop.value.code == 143 and not (cut / "backbone_final.pth").exists()
    sigterm_in_step_2.undo()
    pretrain(drawn_set[1], whole, *settings)
    # another number of workers must change nothing either
    pretrain(drawn_set[1], cut, *settings, "data.num_workers=1", resume=True)
    assert read_losses(cut) == read_losses(whole) and len(read_losses(whole)) == 6
    assert_same_run(whole, cut)
    # the next stage gets the averaged encoder
    backbone = load_plain(whole / "backbone_final.pth")
    assert backbone["meta"]["ema_decay"] == 0.9
    assert all(torch.equal(value, ema(whole)[name]) for name, value in backbone["model"].items())


def test_detector_from_pretraining_to_six_coco_numbers(drawn_set, tmp_path, capsys):
    backbone = pretrain(drawn_set[1], tmp_path / "pre", "train.epochs=1", "train.warmup_epochs=0")
    results = detect(drawn_set, tmp_path / "out", f"train.init_checkpoint={backbone}")
    assert results.keys() == {"bbox", "segm"}
    assert results["bbox"].keys() >= SIX and results["segm"].keys() >= SIX
    capsys.readouterr()
    again = detect(
        drawn_set,
        tmp_path / "eval",
        f"train.init_checkpoint={tmp_path / 'out' / 'model_final.pth'}",
        eval_only=True,
    )
    assert again.keys() == results.keys()
    # A metric of a barely trained model is 0 or NaN; its detections are not.
    first, second = (
        json.loads((tmp_path / run / "inference" / "coco_instances_results.json").read_text())
        for run in ("out", "eval")
    )
    assert first == second and len(first) > 10
    printed = capsys.readouterr()
    assert "AP,AP50,AP75,APs,APm,APl" in printed.out + printed.err
    written = json.loads((tmp_path / "eval" / "metrics_test.json").read_text())
    assert written["segm"].keys() >= SIX


def test_detector_stops_and_resumes_bit_for_bit(drawn_set, tmp_path, sigterm_in_step_2):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = [
        "model.backbone.net.drop_path_rate=0.2",
        "train.accumulation_steps=2",
        "train.ema_decay=0.9",
    ]
    with pytest.raises(SystemExit) as stop:
        detect(drawn_set, cut, *settings)
    assert stop.value.code == 143 and not (cut / "model_final.pth").exists()
    sigterm_in_step_2.undo()
    detect(drawn_set, whole, *settings)
    detect(drawn_set, cut, *settings, "dataloader.train.num_workers=1", resume=True)
    assert read_losses(cut) == read_losses(whole) and len(read_losses(whole)) == 4
    assert_same_run(whole, cut)
    # what was evaluated is the averaged detector, and so is the best one
    best = load_plain(whole / "model_best.pth")
    assert best["meta"]["metric"] == "bbox/AP" and best["meta"]["iterations"] == 4
    torch.testing.assert_close(best["model"], ema(whole), rtol=0, atol=0)


def test_a_loss_of_nan_in_both_stages(drawn_set, tmp_path, monkeypatch):
    """One is skipped; of pretraining, too many in a row end the run."""
    for model, out in ((LoMaR, tmp_path / "pre"), (GeneralizedRCNN, tmp_path / "det")):
        forward, calls = model.forward, []

        def spoilt(self, *args, forward=forward, calls=calls, **kwargs):
            out = forward(self, *args, **kwargs)
            calls.append(self.training)
            if sum(calls) == 2 and self.training:  # the second step
                if isinstance(out, dict):
                    return {name: loss * math.nan for name, loss in out.items()}
                out.loss = out.loss * math.nan
            return out

        monkeypatch.setattr(model, "forward", spoilt)
        if model is LoMaR:
            with pytest.raises(UserError, match="model_0000000.pth"):
                settings = ["train.checkpoint_epochs=1", "train.max_skipped_steps=0"]
                pretrain(drawn_set[1], out, "train.epochs=4", *settings)
        else:
            detect(drawn_set, out, "dataloader.evaluator=null")
            assert read_losses(out).keys() == {0, 2, 3}
        assert "Iteration 1" in (out / "log.txt").read_text()


@pytest.mark.parametrize("sizes", [[(480, 640)], [(64, 96), (96, 64)], [(50, 333), (128, 128)]])
def test_any_sizes_go_through_the_whole_detector(drawn_set, sizes):
    cfg = load_config(tool_args(DETECT).config_file, [*TINY_DETECTOR, *data_settings(*drawn_set)])
    configure_data(cfg)
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    batch = [
        {"image": torch.randint(0, 255, (3, *size)).float(), "height": size[0], "width": size[1]}
        for size in sizes
    ]
    with torch.no_grad():
        outputs = model(batch)
        padded = model.preprocess_image(batch).tensor
    assert padded.shape[-2] % 32 == 0 and padded.shape[-1] % 32 == 0
    for output, (height, width) in zip(outputs, sizes, strict=True):
        boxes = output["instances"].pred_boxes.tensor
        assert output["instances"].image_size == (height, width)
        assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()


def test_boxes_only_trains_without_masks(drawn_set, tmp_path):
    edit_json(drawn_set[0], drop_masks)
    assert detect(drawn_set, tmp_path / "out", "train.max_iter=2").keys() == {"bbox"}


def test_evaluation_follows_the_detectors_own_heads(drawn_set, tmp_path):
    """Trained on boxes only, evaluated on a set that has masks."""
    boxes = tmp_path / "boxes.json"
    boxes.write_text(drawn_set[0].read_text())
    edit_json(boxes, drop_masks)
    detect(drawn_set, tmp_path / "out", f"data.train.annotations={boxes}", "train.max_iter=1")
    weights = f"train.init_checkpoint={tmp_path / 'out' / 'model_final.pth'}"
    assert detect(drawn_set, tmp_path / "eval", weights, eval_only=True).keys() == {"bbox"}


def test_two_processes_train_a_detector(drawn_set, tmp_path):
    """Passes, frozen parts, averages and evaluation decide who waits for whom: nobody for ever."""
    opts = ["dataloader.train.total_batch_size=4", "train.accumulation_steps=2"]
    opts += ["model.backbone.net.freeze_at=2", "train.ema_decay=0.9", "train.eval_period=0"]
    settings = [*TINY_DETECTOR, *data_settings(*drawn_set), f"train.output_dir={tmp_path}", *opts]
    run_two_processes(detection.main, tool_args(DETECT, *settings, "train.max_iter=2"))
    assert re.search(r" 1 \D+ 2 \D+ 2 \D+ 4\D", (tmp_path / "log.txt").read_text())
    assert all(map(math.isfinite, read_losses(tmp_path)[1].values()))
    assert {"bbox", "segm"} <= json.loads((tmp_path / "metrics_test.json").read_text()).keys()
    final = load_plain(tmp_path / "model_final.pth")
    assert final["iteration"] == 1 and not torch.equal(
        final["model"]["backbone.net.blocks.1.mlp.fc1.weight"],
        final["trainer"]["ema"]["backbone.net.blocks.1.mlp.fc1.weight"],
    )


def test_resume_without_a_checkpoint_starts_and_says_so(drawn_set, tmp_path):
    """As in detectron2: a job that is requeued before its first checkpoint passes it, too."""
    settings = ["train.epochs=2", "train.picture_epochs=0"]
    pretrain(drawn_set[1], tmp_path / "pre", *settings, resume=True)
    assert "WARNING: --resume" in (tmp_path / "pre" / "log.txt").read_text()
    pretrain(drawn_set[1], tmp_path / "as_usual", *settings)
    assert read_losses(tmp_path / "pre") == read_losses(tmp_path / "as_usual")
    detect(drawn_set, tmp_path / "out", "train.eval_period=0", resume=True)
    assert "WARNING: --resume" in (tmp_path / "out" / "log.txt").read_text()
    assert len(read_losses(tmp_path / "out")) == 4


def test_resume_with_another_model_is_refused_and_changes_nothing(drawn_set, tmp_path):
    out = tmp_path / "out"
    pretrain(drawn_set[1], out, "train.epochs=2")
    before = {path.name: path.read_bytes() for path in out.glob("*.[py]*")}
    with pytest.raises(UserError, match="--resume"):
        pretrain(drawn_set[1], out, "train.epochs=2", "model.embed_dim=48", resume=True)
    assert before == {path.name: path.read_bytes() for path in out.glob("*.[py]*")}


def test_a_finished_run_is_left_as_it_is(drawn_set, tmp_path):
    out, settings = tmp_path / "out", ["train.epochs=2", "train.picture_epochs=0"]
    backbone = pretrain(drawn_set[1], out, *settings)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(UserError, match="--resume.*train.overwrite=True"):
        pretrain(drawn_set[1], out, *settings)
    assert pretrain(drawn_set[1], out, *settings, resume=True) == backbone
    after = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} <= {
        "log.txt",
        "last_checkpoint",
    }
    # killed before the backbone was written
    backbone.unlink()
    assert pretrain(drawn_set[1], out, *settings, resume=True).is_file()
    # and now for good
    pretrain(drawn_set[1], out, *settings, "train.epochs=3", "train.overwrite=True")
    assert read_losses(out).keys() == {0, 1, 2}


def test_a_finished_detector_is_only_evaluated_again(drawn_set, tmp_path):
    out, weights = tmp_path / "out", "train.init_checkpoint="
    first = detect(drawn_set, out, "train.max_iter=1", "train.max_skipped_steps=0")
    (out / "metrics_test.json").unlink()  # killed in its evaluation
    with pytest.raises(UserError, match="train.overwrite=True"):
        detect(drawn_set, out)
    again = detect(drawn_set, out, "train.max_iter=1", resume=True)
    assert (out / "metrics_test.json").is_file()
    assert again.keys() == first.keys() and read_losses(out).keys() == {0}
    # its own last weights may start the run that replaces it
    settings = [weights + str(out / "model_final.pth"), "train.overwrite=True"]
    detect(drawn_set, out, *settings, "train.max_iter=1", "dataloader.evaluator=null")
    assert not (out / "model_best.pth").exists()


def test_resume_takes_the_learning_rate_of_today(drawn_set, tmp_path):
    out = tmp_path / "out"
    pretrain(drawn_set[1], out, "train.epochs=4", "train.checkpoint_epochs=1")
    rewind(out, "model_0000001.pth")
    pretrain(drawn_set[1], out, "train.epochs=4", "train.base_lr=1e-6", resume=True)
    assert 0 < max(line["lr"] for line in read_metrics(out)) < 1e-6


def test_forgotten_data_is_named(tmp_path):
    with pytest.raises(UserError, match="data.train.annotations"):
        detection.main(tool_args(DETECT, *TINY_DETECTOR, f"train.output_dir={tmp_path}"))


@pytest.mark.parametrize("eval_only", [True, False])
def test_wrong_checkpoints_are_refused(drawn_set, tmp_path, eval_only):
    with pytest.raises(UserError, match="gone.pth"):
        detect(drawn_set, tmp_path, "train.init_checkpoint=gone.pth", eval_only=eval_only)


def test_evaluation_needs_a_whole_detector(drawn_set, tmp_path):
    backbone = pretrain(drawn_set[1], tmp_path / "pre", "train.epochs=1", "train.warmup_epochs=0")
    with pytest.raises(UserError, match=backbone.name):
        detect(drawn_set, tmp_path, f"train.init_checkpoint={backbone}", eval_only=True)
    with pytest.raises(UserError, match="--eval-only"):
        detect(drawn_set, tmp_path, eval_only=True)


def test_a_frozen_backbone_stays_as_it_was(drawn_set, tmp_path):
    """Also under weight decay, which no gradient is needed for."""
    backbone = pretrain(drawn_set[1], tmp_path / "pre", "train.epochs=1", "train.warmup_epochs=0")
    settings = ["model.backbone.net.freeze_at=3", f"train.init_checkpoint={backbone}"]
    detect(drawn_set, tmp_path / "out", *settings, "train.max_iter=2", "train.eval_period=0")
    before = load_plain(backbone)["model"]
    after = load_plain(tmp_path / "out" / "model_final.pth")["model"]
    names = [name for name in before if name.startswith(("blocks.", "patch_embed."))]
    assert len(names) > 20
    for name in names:
        trained = after[f"backbone.net.{name}"]
        assert torch.equal(trained, before[name][..., : trained.shape[-1]]), name
    with pytest.raises(UserError, match="--resume"):
        unfrozen = ["model.backbone.net.freeze_at=0", "train.max_iter=3"]
        detect(drawn_set, tmp_path / "out", *unfrozen, resume=True)


def test_irpe_weights_need_irpe(drawn_set, tmp_path):
    backbone = pretrain(drawn_set[1], tmp_path / "pre", "train.epochs=1", "train.warmup_epochs=0")
    settings = ["model.backbone.net.rel_pos=none", f"train.init_checkpoint={backbone}"]
    with pytest.raises(UserError, match="rel_pos=irpe"):
        detect(drawn_set, tmp_path / "out", *settings)


def test_a_precision_that_the_device_lacks_is_refused_before_data_is_read(tmp_path):
    settings = ["train.precision=fp16", f"train.output_dir={tmp_path}"]
    with pytest.raises(UserError, match="fp16"):
        detection.main(tool_args(DETECT, *TINY_DETECTOR, *settings))


def test_evaluation_needs_no_training_data(drawn_set, tmp_path):
    detect(drawn_set, tmp_path / "out", "train.max_iter=1")
    settings = [opt for opt in data_settings(*drawn_set) if opt.startswith("data.val")]
    weights = f"train.init_checkpoint={tmp_path / 'out' / 'model_final.pth'}"
    output = f"train.output_dir={tmp_path / 'eval'}"
    args = tool_args(DETECT, *TINY_DETECTOR, *settings, weights, output, eval_only=True)
    assert "bbox" in detection.main(args)


def test_a_run_is_not_resumed_on_other_classes(drawn_set, tmp_path):
    detect(drawn_set, tmp_path, "train.max_iter=1")
    text = drawn_set[0].read_text()
    drawn_set[0].write_text(text.replace("disc", "ring"))
    with pytest.raises(UserError, match="--resume.*ring"):
        detect(drawn_set, tmp_path, "train.max_iter=2", resume=True)


def test_first_weights_depend_on_the_seed_alone(drawn_set, tmp_path, monkeypatch):
    """Not on what reading the data draws, for example in a loader of several processes."""
    losses = []
    configure = detection.configure_data
    for draws in (0, 3):

        def drawing(*args, draws=draws, **options):
            torch.rand(draws)
            return configure(*args, **options)

        monkeypatch.setattr(detection, "configure_data", drawing)
        detect(drawn_set, tmp_path / str(draws), "train.max_iter=1")
        lines = read_metrics(tmp_path / str(draws))
        losses += [line["total_loss"] for line in lines if "total_loss" in line]
    assert losses[0] == losses[1] and len(losses) == 2
