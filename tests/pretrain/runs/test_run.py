"""What a run leaves behind besides losses, and `pretrain()`, with which these tests make it."""

import json
import logging
import signal

import numpy as np
import pytest
import torch
from helpers.common import draw_instances, read_metrics
from PIL import Image
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lomar_det
from lomar_det.config.lazy import find_config
from lomar_det.errors import UserError
from lomar_pretrain import load_pretrained, pretrain
from lomar_pretrain.runs import pretrain as engine

pytestmark = pytest.mark.run

MODEL = dict(embed_dim=32, depth=2, num_heads=2, img_size=64, window_size=3, num_windows=2)
TRAIN = dict(epochs=3, warmup_epochs=1, total_batch_size=4, log_period=1, device="cpu")
NO_WORKERS = {"data.num_workers": 0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(images of a run, labelled images of the probe with one that cannot be opened)"""
    root = tmp_path_factory.mktemp("data")
    draw_instances(root / "images", num_images=8)
    for name in ("red", "blue"):
        (root / "labelled" / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 80, (40, 60, 3), dtype=np.uint8)
            pixels[..., 0 if name == "red" else 2] += 150
            Image.fromarray(pixels).save(root / "labelled" / name / f"{i}.png")
    (root / "labelled" / "red" / "4.png").write_bytes(b"broken")
    return root / "images", root / "labelled"


@pytest.fixture(scope="module")
def watched(folders, tmp_path_factory):
    """The output folder of a run with a sheet and a probe after every epoch but the second."""
    output = tmp_path_factory.mktemp("watched")
    probe = {"path": str(folders[1]), "epochs": 3, "k": 3}
    backbone = pretrain(
        folders[0],
        output,
        "lomar_vit_tiny",
        model=MODEL,
        train=TRAIN | {"probe": probe},
        **NO_WORKERS | {"train.picture_epochs": 2},
    )
    assert backbone == output / "backbone_final.pth"
    return output


def test_sheets_of_the_run(watched):
    names = sorted(path.name for path in (watched / "pictures").iterdir())
    assert names == ["reconstruction_0002.png", "reconstruction_0003.png"]  # 2, and the end
    newest = (watched / "pictures" / names[-1]).read_bytes()
    assert (watched / "reconstruction.png").read_bytes() == newest
    first, last = (np.asarray(Image.open(watched / "pictures" / n)).astype(float) for n in names)
    height, width = first.shape[:2]
    left = slice(height // 10, 9 * height // 10), slice(0, width // 6)
    assert np.array_equal(first[left], last[left])  # the same images and windows ...
    assert not np.array_equal(first, last)  # ... by another model
    with Image.open(watched / "loss.png") as curves:
        assert curves.height > 500  # a second row, for the kNN accuracy


def test_tensorboard_has_sheets_and_accuracy(watched):
    (events,) = watched.glob("events.out.tfevents.*")
    data = EventAccumulator(str(events)).Reload()
    assert [event.step for event in data.Images("reconstruction")] == [3, 5]
    assert [event.step for event in data.Scalars("knn_top1")] == [5]


def test_accuracy_of_the_run(watched):
    lines = [line for line in read_metrics(watched) if "knn_top1" in line]
    assert [line["iteration"] for line in lines] == [5] and "total_loss" in lines[0]
    assert lines[0]["knn_top1"] == lines[0]["knn_top1_random_init"] == 100
    assert lines[0]["knn_chance"] == 50
    log = (watched / "log.txt").read_text()
    assert "1 of 9" in log and "4.png" in log and "100.0 %" in log


def test_watching_changes_no_bit_and_runs_can_repeat_in_one_process(folders, watched, tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    off = {"picture_epochs": 0}
    pretrain([folders[0]], tmp_path, "lomar_vit_tiny", model=MODEL, train=TRAIN | off, **NO_WORKERS)
    losses = [line["total_loss"] for line in read_metrics(tmp_path)]
    assert losses == [line["total_loss"] for line in read_metrics(watched)] and len(losses) == 6
    first, second = (
        torch.load(run / "model_final.pth", weights_only=True)["model"]
        for run in (tmp_path, watched)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not list(tmp_path.glob("**/reconstruction*"))
    # one line per message, in this run's log alone, and signals as they were
    assert (tmp_path / "log.txt").read_text().count("backbone_final.pth") == 1
    assert str(tmp_path) not in (watched / "log.txt").read_text()
    assert [len(logging.getLogger(n).handlers) for n in ("lomar_det", "lomar_pretrain")] == [2, 2]
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_files_for_the_next_stage_and_for_resuming_are_told_apart(watched):
    assert (watched / "last_checkpoint").read_text() == "model_final.pth"
    whole = torch.load(watched / "model_final.pth", weights_only=True)
    backbone = torch.load(watched / "backbone_final.pth", weights_only=True)
    with safe_open(watched / "backbone_final.safetensors", "pt") as file:
        assert json.loads(file.metadata()["meta"]) == backbone["meta"] == whole["meta"]
        assert file.keys() == sorted(backbone["model"])
        for name, tensor in backbone["model"].items():
            assert torch.equal(tensor, file.get_tensor(name))
            assert torch.equal(tensor, whole["model"][name])
    assert backbone.keys() == {"model", "meta"} and "trainer" in whole
    assert set(whole["model"]) - set(backbone["model"]) == {
        "mask_token",
        "encoder_pred.weight",
        "encoder_pred.bias",
    }
    assert backbone["meta"] == {
        "method": "lomar",
        "patch_size": 16,
        "mlp_ratio": 4.0,
        "rel_pos": "irpe",
        "abs_pos": False,
        "mask_ratio": 0.8,
        "norm_pix_loss": True,
        "epochs": 3,
        "ema_decay": None,
        "code_version": lomar_det.__version__,
        **(MODEL | {"img_size": [64, 64]}),
    }


def test_a_run_can_be_loaded_again(watched):
    model = load_pretrained(watched / "model_final.pth")
    assert model.architecture.items() <= torch.load(watched / "model_final.pth")["meta"].items()
    with pytest.raises(UserError, match="backbone_final.pth.*model_final.pth"):
        load_pretrained(watched / "backbone_final.pth")


def test_unreadable_folders_end_no_run(folders, watched, tmp_path, monkeypatch):
    """The probe's folder may vanish, and the disk fill up, in the middle of a run."""
    from lomar_pretrain.runs import progress
    from lomar_pretrain.runs.knn import KNNProbe

    measured = []

    def vanish(self, model):
        measured.append(model)
        if len(measured) > 1:
            raise UserError("the folder is gone")
        return 50.0

    def fill_up(*_):
        raise OSError("disk full")

    monkeypatch.setattr(KNNProbe, "measure", vanish)
    monkeypatch.setattr(progress.shutil, "copyfile", fill_up)
    settings = TRAIN | {"epochs": 2, "probe": {"path": str(folders[1]), "epochs": 1}}
    pretrain(folders[0], tmp_path, "lomar_vit_tiny", model=MODEL, train=settings, **NO_WORKERS)
    log = (tmp_path / "log.txt").read_text()
    assert "disk full" in log and "the folder is gone" in log
    assert (tmp_path / "backbone_final.pth").is_file()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train.epoch": 3}, "train.epoch'"),
        ({"train": {"probe": {"pat": "x"}}}, "train.probe.pat'"),
        ({"train": {"picture_epochs": float("nan")}}, "train.picture_epochs=nan"),
        ({"train": {"wandb": []}}, "train.wandb="),
        ({"model.norm_pix_loss": "yes"}, "norm_pix_loss=yes"),
        ({"train": {"probe": {"path": "no_labels"}}}, "no_labels"),
        ({"config": "lomar_vit_z"}, "lomar_vit_z.*lomar_vit_tiny"),
        ({"data": "gone"}, "gone"),
    ],
)
def test_mistakes_are_named(folders, tmp_path, settings, words):
    defaults = {"data": folders[0], "config": "lomar_vit_tiny", "model.depth": 1}
    with pytest.raises(UserError, match=words):
        pretrain(output=tmp_path / "out", **(defaults | settings))
    assert not list(tmp_path.glob("out/model*"))


def test_recipes_are_found_by_name_and_by_path():
    path = find_config("lomar_vit_b_224_1600ep", "pretrain")
    assert path.is_file() and find_config(path, "coco") == path
    assert find_config("lomar_vit_tiny.py", "pretrain").stem == "lomar_vit_tiny"


def test_pretraining_goes_on_from_given_weights(folders, watched, tmp_path):
    output = tmp_path / "more"
    start = {"init_checkpoint": str(watched / "model_final.pth"), "base_lr": 1e-12}
    train = TRAIN | start | {"ema_decay": 0.5, "epochs": 1, "warmup_epochs": 0}
    options = NO_WORKERS | {"train.picture_epochs": 0}
    pretrain(folders[0], output, "lomar_vit_tiny", model=MODEL, train=train, **options)
    given, final = (
        torch.load(path / "model_final.pth", weights_only=True) for path in (watched, output)
    )
    for name, tensor in given["model"].items():
        torch.testing.assert_close(final["model"][name], tensor)
        torch.testing.assert_close(final["trainer"]["ema"][name], tensor)


def test_metrics_survive_a_crash_and_a_resume(tmp_path):
    path = tmp_path / "metrics.json"
    assert engine.read_metrics(path) == []
    lines = ['{"iteration": 0, "lr": 1}', '{"iteration": 1, "l\0', '{"iteration": 0, "lr": 2}']
    path.write_text("\n".join([*lines, '{"iteration": 3, "lr": 4}', '{"iter']))
    assert engine.read_metrics(path) == [{"iteration": 0, "lr": 2}, {"iteration": 3, "lr": 4}]
