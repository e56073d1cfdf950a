"""Exported files, loaded and run on sizes that they were not recorded at, against the model."""

import argparse
import json
import re

import numpy as np
import pytest
import torch
from helpers.common import ROOT, TINY_DETECTOR, draw_instances

import lomar_det.export
from lomar_det.config.lazy import load_config
from lomar_det.detection.yaml_route import load_any_config
from lomar_det.errors import UserError
from lomar_det.export import main
from lomar_det.export.compare import difference
from lomar_det.modeling.build import build_model

pytestmark = pytest.mark.run

CONFIG = ROOT / "configs" / "custom" / "mask_rcnn_lomar_vit_tiny.py"
BASELINE = ["model.backbone.net.rel_pos=decomposed", "model.backbone.net.use_abs_pos=True"]


def make_detector(path, *opts):
    """A model, always the same, and its checkpoint; spread out, so that mistakes show."""
    torch.manual_seed(0)
    cfg = load_config(CONFIG, [*TINY_DETECTOR, *opts], {"model.roi_heads.num_classes": 3})
    model = build_model(cfg).eval()
    for name, parameter in model.named_parameters():
        if "lookup_table" in name or "rel_pos" in name or "cls_score.weight" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    torch.save({"model": model.state_dict(), "meta": {"classes": ["a", "b", "c"]}}, path)
    return model


def run(tmp_path, kind, *opts, size=None):
    checkpoint = tmp_path / "model.pth"
    model = make_detector(checkpoint, *opts)
    path = main(
        argparse.Namespace(
            config_file=str(CONFIG),
            format=kind,
            output=str(tmp_path / "out"),
            input_size=size,
            opts=[*TINY_DETECTOR, *opts, f"train.init_checkpoint={checkpoint}"],
        )
    )
    description = json.loads((tmp_path / "out" / f"{path.name}.json").read_text())
    assert description["versions"]["torch"] == torch.__version__
    assert [c["name"] for c in description["categories"]] == ["a", "b", "c"]
    assert max(check["difference"] for check in description["checked"]) < 1e-4
    return model, path, description


SIZES = [(1, 3, 96, 256), (2, 3, 160, 96)]


@pytest.mark.slow
def test_torch_export_serves_all_sizes(tmp_path):
    model, path, description = run(tmp_path, "torch_export")
    module = torch.export.load(path).module()
    assert description["inputs"][0]["at_least"] == 96
    for size in SIZES:
        images = torch.randn(size)
        found = module(images)
        assert list(found) == [output["name"] for output in description["outputs"]]
        for name, expected in model.backbone(images).items():
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_onnx_serves_all_sizes(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, path, _ = run(tmp_path, "onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in SIZES:
        images = torch.randn(size)
        found = session.run(None, {"images": images.numpy()})
        for value, expected in zip(found, model.backbone(images).values(), strict=True):
            torch.testing.assert_close(
                torch.from_numpy(value), expected.detach(), rtol=1e-3, atol=1e-3
            )


def test_the_baseline_serves_one_size(tmp_path):
    with pytest.raises(UserError, match="--input-size"):
        run(tmp_path, "torch_export", *BASELINE)
    with pytest.raises(UserError, match="--input-size 96 100.*32"):
        run(tmp_path, "torch_export", *BASELINE, size=[96, 100])
    model, path, _ = run(tmp_path, "torch_export", *BASELINE, size=[96, 160])
    images = torch.randn(1, 3, 96, 160)
    found = torch.export.load(path).module()(images)
    torch.testing.assert_close(found["p3"], model.backbone(images)["p3"], rtol=1e-4, atol=1e-4)


def detect(model, image, threshold):
    model.roi_heads.box_predictor.test_score_thresh = threshold
    with torch.no_grad():
        return model.inference([{"image": image}], do_postprocess=False)[0]


@pytest.mark.parametrize("kind", ["torchscript", "onnx_detector"])
@pytest.mark.parametrize(
    "opts", [[], pytest.param(BASELINE, marks=pytest.mark.slow)], ids=["irpe", "decomposed"]
)
def test_the_whole_detector_serves_all_sizes(tmp_path, kind, opts):
    model, path, description = run(tmp_path, kind, *opts)
    names = description["outputs"]
    if kind == "torchscript":
        loaded = torch.jit.load(path)
    else:
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def loaded(image, threshold):
            feeds = {"image": image.numpy(), "threshold": threshold.numpy()}
            return [torch.from_numpy(value) for value in session.run(names, feeds)]

    counts = set()
    for size, threshold in (((3, 77, 130), 0.3), ((3, 200, 64), 0.5), ((3, 96, 96), 0.999)):
        image = 255 * torch.rand(size)
        expected = detect(model, image, threshold)
        found = dict(zip(names, loaded(image, torch.tensor(threshold)), strict=True))
        counts.add(len(expected))
        torch.testing.assert_close(
            found["pred_boxes"], expected.pred_boxes.tensor, rtol=1e-3, atol=1e-2
        )
        assert torch.equal(found["pred_classes"], expected.pred_classes)
        torch.testing.assert_close(found["scores"], expected.scores, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found["pred_masks"], expected.pred_masks, rtol=1e-3, atol=1e-3)
        assert found["image_size"].tolist() == list(size[1:])
    assert 0 in counts and max(counts) > 3


def test_a_wrong_file_does_not_stay(tmp_path, monkeypatch):
    def export(model, path, size):
        path.write_text("wrong")
        return {"checked": [{"input": [1], "difference": 0.5}]}

    monkeypatch.setitem(lomar_det.export.FORMATS, "torchscript", ("detector.ts", export))
    with pytest.raises(UserError, match="detector.ts"):
        run(tmp_path, "torchscript")
    assert not list((tmp_path / "out").iterdir())


def test_a_yaml_config_is_described_like_any_other(tmp_path, monkeypatch):
    config = str(ROOT / "configs" / "custom" / "mask_rcnn_lomar_vit_b.yaml")
    opts = ["MODEL.LOMAR.EMBED_DIM", "32", "MODEL.LOMAR.DEPTH", "2", "MODEL.LOMAR.NUM_HEADS", "2"]
    checkpoint = tmp_path / "model.pth"
    torch.save({"model": build_model(load_any_config(config, opts)).state_dict()}, checkpoint)

    def export(model, path, size):
        return {"checked": [{"input": [1], "difference": 0.0}]}

    monkeypatch.setitem(lomar_det.export.FORMATS, "torchscript", ("detector.ts", export))
    path = main(
        argparse.Namespace(
            config_file=config,
            format="torchscript",
            output=str(tmp_path / "out"),
            input_size=None,
            opts=[*opts, "MODEL.WEIGHTS", str(checkpoint)],
        )
    )
    description = json.loads(path.with_name("detector.ts.json").read_text())
    assert description["pixel_mean"] == [123.675, 116.28, 103.53]
    assert description["image_size"] == 1024 and len(description["categories"]) == 80


def test_differences_are_relative_and_wrong_shapes_infinite():
    a = torch.tensor([1.0, -4.0])
    assert difference([(a, a + 0.4), (a[:0], a[:0])]) == pytest.approx(0.1)
    assert difference([(a, a[:1])]) == difference([(a, a * float("nan"))]) == float("inf")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_snippets_of_the_documentation_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    for kind in lomar_det.export.FORMATS:
        run(tmp_path, kind)
    (tmp_path / "out").rename(tmp_path / "exported")
    draw_instances(tmp_path / "images", num_images=1)
    (tmp_path / "images" / "000.png").rename(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "export.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    capsys.readouterr()
    names = {}
    exec(blocks[0].replace("0.5))))", "0.3))))"), names)  # an untrained detector is not sure
    found = names["outputs"]
    assert capsys.readouterr().out.splitlines()[0].split()[0] in {"a", "b", "c"}
    assert names["mask"].dtype == bool and len(found["scores"]) > 0
    exec(blocks[1].replace("0.5", "0.3"), names)
    np.testing.assert_allclose(names["outputs"]["scores"], found["scores"], rtol=1e-3)
    exec(blocks[2], names)
    for feature, level in zip(names["features"].values(), names["levels"], strict=True):
        np.testing.assert_allclose(feature.detach(), level, rtol=1e-2, atol=1e-3)
