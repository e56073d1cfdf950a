"""The demo: its data are sound, its runs report, and unlabelled images make the detector better."""

import json
import shutil
import sys

import pytest
from helpers.common import ROOT, TINY_PRETRAIN

from lomar_det.data import check

PROJECT = ROOT / "projects" / "blood_cells"
sys.path.insert(0, str(PROJECT))

import run_demo  # noqa: E402

pytestmark = pytest.mark.run


def test_the_data_are_sound():
    names = []
    for split, number in (("train", 292), ("val", 72)):
        path = PROJECT / "data" / f"annotations_{split}.json"
        assert check.main([str(path), str(PROJECT / "data" / "images"), "--strict"]) == 0
        images = [image["file_name"] for image in json.loads(path.read_text())["images"]]
        assert len(images) == number
        names += images
    assert sorted(names) == sorted(p.name for p in (PROJECT / "data" / "images").iterdir())


def test_a_run_reports_its_steps_and_its_failure(tmp_path, capsys):
    settings = [*TINY_PRETRAIN, "train.epochs=2", "train.precision=fp32", "train.log_period=20"]
    run = run_demo.ToolRun("pretraining", "pretrain", "pretrain", tmp_path / "out", *settings)
    assert run.wait() > 0
    printed = capsys.readouterr().out
    assert "step   20" in printed and (tmp_path / "out" / "backbone_final.pth").is_file()
    assert "iter: 19" in (tmp_path / "out.log").read_text()
    losses = run_demo.read_losses(tmp_path / "out")
    assert losses["loss"] > 0 and 0 < losses["loss_constant"] < 1
    run = run_demo.ToolRun("pretraining", "pretrain", "pretrain", tmp_path / "b", "data.path=no")
    with pytest.raises(SystemExit, match="b.log"):
        run.wait()


@pytest.mark.slow
def test_unlabelled_images_make_the_detector_better(tmp_path):
    """The demo as it is: some five minutes on two cores."""
    run_demo.main(tmp_path, seed=0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    box = {name: values["AP"] for name, values in summary["box"].items()}
    assert box["pretrained"] >= box["random"] + 6
    assert (tmp_path / "comparison.png").is_file()
    shutil.rmtree(tmp_path)
