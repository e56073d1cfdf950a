"""Images of the training data show what the loader yields."""

import json
import re
import runpy
import sys

import numpy as np
import pytest
from helpers.common import (
    ROOT,
    TINY_DETECTOR,
    TINY_PRETRAIN,
    data_settings,
    drop_masks,
    edit_json,
    tool_args,
)
from PIL import Image

from lomar_det.config.lazy import instantiate_section, load_config
from lomar_det.data import configure_data
from lomar_det.detection.draw import distinct_color
from lomar_det.detection.show_data import visualize_detection_data
from lomar_pretrain.runs.show_data import visualize_pretraining_data


def detector_config(drawn_set, *opts):
    config = tool_args("custom/mask_rcnn_lomar_vit_tiny.py").config_file
    return load_config(config, [*TINY_DETECTOR, *data_settings(*drawn_set), *opts])


@pytest.mark.parametrize("masks", [True, False])
def test_annotations_are_drawn_where_they_are(drawn_set, tmp_path, masks):
    if not masks:
        edit_json(drawn_set[0], drop_masks)
    paths = visualize_detection_data(detector_config(drawn_set), tmp_path / "out", 3, True)
    assert [path.name for path in paths] == ["000_000.png", "001_001.png", "002_002.png"]
    data = json.loads(drawn_set[0].read_text())
    image = data["images"][0]
    before = np.array(Image.open(drawn_set[1] / image["file_name"]), dtype=int)
    after = np.array(Image.open(paths[0]), dtype=int)
    assert after.shape == before.shape
    for a in [a for a in data["annotations"] if a["image_id"] == image["id"]]:
        x, y, w, h = a["bbox"]
        color = distinct_color([3, 7].index(a["category_id"]))
        assert tuple(after[round(y + h), round(x + w / 2)]) == color  # the lower edge
        center = (round(y + h * 0.75), round(x + w / 2))
        assert (after[center] != before[center]).any() == masks


def test_samples_are_those_of_training_in_its_order(drawn_set, tmp_path):
    cfg = detector_config(drawn_set, "train.seed=5")
    paths = visualize_detection_data(cfg, tmp_path / "out", 4)
    again = detector_config(drawn_set)
    again = configure_data(again).apply(again)
    batches = iter(instantiate_section(again, "dataloader.train", seed=5))  # of two
    samples = next(batches) + next(batches)
    for path, sample in zip(paths, samples, strict=True):
        assert path.stem.endswith(sample["file_name"][-7:-4])
        size = sample["image"].shape[2], sample["image"].shape[1]
        with Image.open(path) as image:
            assert image.size == size


@pytest.mark.parametrize(
    "options, words",
    [
        (["--output", "{file}", "data.path={images}"], "--output .*file"),
        (["--num", "0", "data.path={images}"], ".*num=0"),
        ([], "data.path"),
        (["data.path={images}", "data.crop_scale=0.5"], "data.crop_scale=0.5"),
        (["data.path={images}", "model.img_size=96"], "model.*window_size.*7"),
    ],
)
def test_the_tool_says_what_is_wrong(drawn_set, tmp_path, monkeypatch, capsys, options, words):
    (tmp_path / "file").touch()
    given = [o.format(file=tmp_path / "file", images=drawn_set[1]) for o in options]
    config = tool_args("pretrain/lomar_vit_tiny.py").config_file
    tool = ROOT / "tools" / "visualize_data.py"
    monkeypatch.setattr(sys, "argv", [str(tool), "--config-file", config, *given])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(tool), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and re.match(f"error: {words}", line)


def test_crops_of_pretraining_show_windows_and_masks(drawn_set, tmp_path):
    config = tool_args("pretrain/lomar_vit_tiny.py").config_file
    settings = [*TINY_PRETRAIN, f"data.path={drawn_set[1]}"]
    windows = visualize_pretraining_data(load_config(config, settings), tmp_path / "a", 2)
    assert len(windows) == 2
    pixels = np.array(Image.open(windows[0]), dtype=int)
    assert pixels.shape == (64, 64, 3)
    red = (pixels == (255, 0, 0)).all(-1)
    assert red.any() and (pixels[~red] < 64).all(-1).mean() > 0.2  # masked patches are dark


def test_an_unreadable_image_is_not_said_to_be_drawn(drawn_set, tmp_path, lomar_log):
    (tmp_path / "photos").mkdir()
    Image.open(next(drawn_set[1].glob("*.png"))).save(tmp_path / "photos" / "good.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"")
    config = tool_args("pretrain/lomar_vit_tiny.py").config_file
    settings = [*TINY_PRETRAIN, f"data.path={tmp_path / 'photos'}"]
    written = visualize_pretraining_data(load_config(config, settings), tmp_path / "out", 2)
    assert sorted(path.name[4:] for path in written) == ["another.png", "good.png"]
    assert "broken.jpg" in lomar_log.text


def test_the_command_refuses_a_config_of_another_stage(monkeypatch, capsys):
    config = tool_args("imagenet/finetune_lomar_vit_tiny.py").config_file
    monkeypatch.setattr("sys.argv", ["visualize_data.py", "--config-file", str(config)])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / "tools" / "visualize_data.py"), run_name="__main__")
    assert exit.value.code == 2
    assert "finetune_lomar_vit_tiny.py" in capsys.readouterr().err
