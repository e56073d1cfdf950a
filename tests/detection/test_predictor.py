"""The predictor against detectron2's own way, and the demo tool on folders of images."""

import argparse
import json
import runpy

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import rasterio
import torch
from detectron2.structures import Boxes, Instances
from helpers.common import ROOT, TINY_DETECTOR, draw_instances
from PIL import Image
from pycocotools.coco import COCO

from lomar_det.config.lazy import load_config
from lomar_det.data import regions
from lomar_det.detection import draw, tiling
from lomar_det.detection.demo import main
from lomar_det.detection.draw import draw_detections
from lomar_det.detection.from_checkpoint import find_categories
from lomar_det.detection.instance_masks import InstanceMasks
from lomar_det.detection.predictor import Predictor
from lomar_det.errors import UserError
from lomar_det.modeling.build import build_model

CONFIG = ROOT / "configs" / "custom" / "mask_rcnn_lomar_vit_tiny.py"


def save_detector(path, *opts, meta=None, num_classes=2):
    """An untrained detector; its class scores are spread, so that thresholds matter."""
    values = {"model.roi_heads.num_classes": num_classes}
    cfg = load_config(CONFIG, [*TINY_DETECTOR, *opts], values)
    model = build_model(cfg)
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)
    torch.save({"model": model.state_dict(), "meta": meta or {}}, path)
    return path


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    torch.manual_seed(0)
    return save_detector(tmp_path_factory.mktemp("detector") / "model_final.pth")


def predictor_of(checkpoint, *opts, **options):
    return Predictor(load_config(CONFIG, [*TINY_DETECTOR, *opts]), checkpoint, **options)


def noise_image(width=150, height=100):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def write_tiled(path, image):
    path.parent.mkdir(exist_ok=True)
    layout = {"width": image.width, "height": image.height, "count": 3, "dtype": "uint8"}
    layout |= {"tiled": True, "blockxsize": 64, "blockysize": 64}
    with rasterio.open(path, "w", "GTiff", **layout) as file:
        file.write(np.asarray(image).transpose(2, 0, 1))


def test_instances_are_those_of_detectron2_in_the_images_pixels(detector):
    predictor = predictor_of(detector, confidence_threshold=0.4)
    image = noise_image()
    instances = predictor(image)
    assert len(instances) > 5 and instances.scores.min() > 0.4
    # as evaluation does it: 100 is the shorter side, so the image shrinks to 96 x 64
    resized = torch.tensor(np.asarray(image.resize((96, 64), Image.BILINEAR))).permute(2, 0, 1)
    with torch.no_grad():
        batch = [{"image": resized, "height": 100, "width": 150}]
        expected = predictor.model(batch)[0]["instances"]
    torch.testing.assert_close(instances.pred_boxes.tensor, expected.pred_boxes.tensor)
    torch.testing.assert_close(instances.scores, expected.scores)
    assert torch.equal(instances.pred_classes, expected.pred_classes)
    masks = np.asarray(instances.pred_masks)
    assert masks.any() and (masks != expected.pred_masks.numpy()).mean() < 1e-4


def test_the_checkpoint_is_read_once(detector, monkeypatch):
    """Classes, masks and weights come from one reading: files of a gigabyte are usual."""
    read, load = [], torch.load

    def count(file, *args, **kwargs):
        read.append(file)
        return load(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", count)
    predictor_of(detector)
    assert len(read) == 1


def test_classes_and_masks_follow_the_checkpoint(tmp_path):
    """The config says 80 classes and masks; nobody has the annotations."""
    boxes_only = ["model.roi_heads.mask_head=null", "model.roi_heads.mask_in_features=null"]
    path = save_detector(tmp_path / "boxes.pth", *boxes_only, num_classes=3)
    predictor = predictor_of(path, confidence_threshold=0.0, max_detections=7)
    instances = predictor(np.asarray(noise_image()))
    assert len(instances) == 7 and not instances.has("pred_masks")
    assert [c["name"] for c in predictor.categories] == ["class 1", "class 2", "class 3"]


def test_crowded_images_raise_the_number_of_detections(detector):
    assert len(predictor_of(detector, confidence_threshold=0.0)(noise_image())) == 100
    more = predictor_of(detector, "data.max_detections=150", confidence_threshold=0.0)
    assert len(more(noise_image())) == 150


def test_bf16_works(detector):
    predictor = predictor_of(detector, "train.precision=bf16", confidence_threshold=0.0)
    instances = predictor(noise_image())
    assert len(instances) and instances.scores.dtype == torch.float32


def test_tiles_give_every_object_once_with_its_whole_mask(detector, monkeypatch):
    """A faultless detector in place of the model: objects across borders, one of three tiles."""
    predictor = predictor_of(detector, tile_size=64)  # they share 16 pixels
    objects = [(50, 10, 62, 22), (10, 30, 110, 44), (90, 70, 130, 99)]
    pixels = np.zeros((3, 100, 150), bool)
    for mask, (x0, y0, x1, y1) in zip(pixels, objects, strict=True):
        mask[y0:y1, x0:x1] = True
        mask[y0, x0] = False  # not just the box

    def detect_all(_pixels, tiles, _size):
        return [detect(tile) for tile in tiles]

    def detect(tile):
        found, places = [], []
        for i, mask in enumerate(pixels):
            rows, columns = np.nonzero(mask[tile[1] : tile[3], tile[0] : tile[2]])
            if len(rows):
                found.append(i)
                box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                places.append([v + tile[k % 2] for k, v in enumerate(box)])
        instances = Instances((100, 150))
        instances.pred_boxes = Boxes(torch.tensor(places, dtype=torch.float32).view(-1, 4))
        instances.scores = 0.9 - 0.1 * torch.tensor(found, dtype=torch.float32)
        instances.pred_classes = torch.zeros(len(found), dtype=torch.long)
        seen = np.zeros((len(found), 100, 150), np.uint8)
        window = np.s_[:, tile[1] : tile[3], tile[0] : tile[2]]
        seen[window] = pixels[found][window]
        rles = [coco_mask.encode(np.asfortranarray(mask)) for mask in seen]
        instances.pred_masks = InstanceMasks((100, 150), [(0, 0)] * len(found), rles)
        return instances

    monkeypatch.setattr(predictor._tiles, "_detect", detect_all)
    instances = predictor(noise_image())
    assert instances.pred_boxes.tensor.tolist() == [[float(v) for v in box] for box in objects]
    np.testing.assert_array_equal(np.asarray(instances.pred_masks), pixels)
    monkeypatch.undo()
    assert predictor(noise_image(64, 50)).image_size == (50, 64)  # fits into one tile


def test_a_file_read_by_region_gives_what_the_whole_image_gives(detector, tmp_path, monkeypatch):
    """In tiles, and in batches of them."""
    image = noise_image(210, 130)
    write_tiled(tmp_path / "x.tif", image)
    monkeypatch.setattr(regions, "LEAST_MEGAPIXELS", 0.0)
    monkeypatch.setattr(tiling, "load_image", None)  # it is never opened whole
    options = {"tile_size": 96, "tile_overlap": 32, "confidence_threshold": 0.4}
    whole = predictor_of(detector, **options)(image)
    assert len(whole) > 5
    for batch_size in (1, 4):
        parts = predictor_of(detector, **options, batch_size=batch_size)(tmp_path / "x.tif")
        assert parts.image_size == whole.image_size
        torch.testing.assert_close(parts.pred_boxes.tensor, whole.pred_boxes.tensor)
        torch.testing.assert_close(parts.scores, whole.scores)
        assert np.array_equal(parts.pred_classes, whole.pred_classes)
        assert (np.asarray(parts.pred_masks) != np.asarray(whole.pred_masks)).mean() < 1e-4


@pytest.mark.parametrize(
    "options, words",
    [
        ({"batch_size": 0}, "batch.*0"),
        ({"tile_size": 100, "tile_overlap": 100}, "overlap"),
        ({"tile_size": -1}, "tile"),
        ({"confidence_threshold": 1.5}, "confidence.*1.5"),
        ({"max_detections": 0}, "detections.*0"),
    ],
)
def test_unusable_options_are_refused(detector, options, words):
    with pytest.raises(UserError, match=words):
        predictor_of(detector, **options)


def test_a_backbone_or_other_heads_are_refused(detector, tmp_path):
    with pytest.raises(UserError, match="train.init_checkpoint=FILE"):
        predictor_of(None)
    state = torch.load(detector)["model"]
    net = {name: value for name, value in state.items() if "backbone.net" in name}
    torch.save({"model": net}, tmp_path / "backbone.pth")
    with pytest.raises(UserError, match="backbone.pth"):
        predictor_of(tmp_path / "backbone.pth")
    with pytest.raises(UserError, match="model_final.pth.*box_head"):
        predictor_of(
            detector,
            "model.roi_heads.box_head.fc_dims=[64]",
            "model.roi_heads.box_predictor.input_shape.channels=64",
        )


def categories_of(cfg_opts=(), num_classes=2, names=None, file=None):
    return find_categories(load_config(CONFIG, list(cfg_opts)), num_classes, names, file)


def test_where_class_names_come_from(drawn_set, tmp_path, lomar_log):
    annotations = f"data.train.annotations={drawn_set[0]}"
    known = [{"id": 3, "name": "disc"}, {"id": 7, "name": "square"}]
    assert categories_of([annotations]) == known
    assert categories_of(["data.val.annotations=gone.json"])[0]["name"] == "class 1"
    assert categories_of([annotations], num_classes=3)[2]["name"] == "class 3"
    assert str(drawn_set[0]) in lomar_log.text
    # the checkpoint's names win; ids are those of annotations with the same names
    assert categories_of([annotations], names=["a", "b"])[1] == {"id": 2, "name": "b"}
    assert categories_of([annotations], names=["disc", "square"]) == known
    coco = categories_of(num_classes=80)
    assert coco[0] == {"id": 1, "name": "person"} and coco[79] == {"id": 90, "name": "toothbrush"}
    names = tmp_path / "names.txt"
    names.write_text("cat\nblack dog\n\n")
    assert categories_of([annotations], file=names)[1] == {"id": 2, "name": "black dog"}
    assert categories_of(file=drawn_set[0]) == known
    with pytest.raises(UserError, match="names.txt.*2.*3"):
        categories_of(num_classes=3, file=names)
    with pytest.raises(UserError, match="gone.txt"):
        categories_of(file=tmp_path / "gone.txt")


def run_demo(inputs, output, checkpoint, *opts, **options):
    defaults = dict(
        confidence_threshold=0.0,
        max_detections=3,
        no_pictures=False,
        tile_size=0,
        tile_overlap=None,
        batch_size=1,
        format=["results"],
        classes=None,
    )
    return main(
        argparse.Namespace(
            config_file=str(CONFIG),
            input=[str(path) for path in inputs],
            output=str(output),
            opts=[*TINY_DETECTOR, f"train.init_checkpoint={checkpoint}", *opts],
            **(defaults | options),
        )
    )


def test_demo_on_a_folder_with_a_broken_image(tmp_path, drawn_set, capsys):
    checkpoint = save_detector(tmp_path / "m.pth", meta={"classes": ["disc", "square"]})
    folder, output = tmp_path / "photos", tmp_path / "out"
    for sub in ("a", "b"):  # equal names
        draw_instances(folder / sub, num_images=1)
    noise_image(300, 200).convert("RGBA").save(folder / "a" / "large.tif")
    (folder / "broken.jpg").write_bytes(b"not an image")
    failures = run_demo([folder], output, checkpoint, f"data.train.annotations={drawn_set[0]}")
    assert len(failures) == 1 and "broken.jpg" in failures[0]
    log = capsys.readouterr().out
    assert "1 of 4" in log and "--tile-size 96" in log
    drawn = {str(p.relative_to(output)) for p in output.rglob("*") if p.suffix in (".png", ".tif")}
    assert drawn == {"a/000.png", "b/000.png", "a/large.tif"}
    results = json.loads((output / "instances.json").read_text())
    assert len(results) == 9 and len({r["image_id"] for r in results}) == 3
    assert {r["file_name"] for r in results} == drawn
    # as pycocotools takes it, over annotations with the same ids
    truth = json.loads(drawn_set[0].read_text())
    truth["images"] = [
        {"id": r["image_id"], "width": 96, "height": 64} for r in results if "000" in r["file_name"]
    ]
    coco = COCO()
    coco.dataset = truth | {"annotations": []}
    coco.createIndex()
    small = coco.loadRes([r for r in results if "000" in r["file_name"]])
    assert {a["category_id"] for a in small.anns.values()} <= {3, 7}
    for annotation in small.anns.values():
        assert small.annToMask(annotation).shape == (64, 96) and annotation["area"] > 0


def test_demo_on_an_image_that_is_read_by_region(tmp_path, detector, monkeypatch):
    monkeypatch.setattr(regions, "LEAST_MEGAPIXELS", 0.0)
    monkeypatch.setattr(draw, "OVERVIEW", 100)
    monkeypatch.setattr(draw, "DETAIL", 64)
    write_tiled(tmp_path / "in" / "x.tif", noise_image(210, 130))
    options = {"tile_size": 96, "batch_size": 3, "max_detections": 20}
    options["format"] = ["results", "coco", "geojson"]
    run_demo([tmp_path / "in"], tmp_path / "out", detector, **options)
    results = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert len(results) == 20
    assert all(0 <= x <= x + w <= 210 and 0 <= y <= y + h <= 130 for x, y, w, h in
               (r["bbox"] for r in results))  # fmt: skip
    sizes = {p.name: Image.open(p).size for p in (tmp_path / "out").glob("*.jpg")}
    dataset = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [a["bbox"] for a in dataset["annotations"]] == [r["bbox"] for r in results]
    features = json.loads((tmp_path / "out" / "x.tif.geojson").read_text())["features"]
    assert len(features) == 20
    assert sizes.pop("x.tif.jpg") == (100, 62)
    assert sizes.keys() >= {"x.tif_1.jpg"}
    assert all(max(size) <= 64 for size in sizes.values())


def test_demo_without_images_on_patterns(tmp_path, detector):
    draw_instances(tmp_path / "in", num_images=3)
    output = tmp_path / "out"
    pattern = tmp_path / "in" / "*[02].png"
    run_demo([pattern, tmp_path / "in" / "000.png"], output, detector, no_pictures=True)
    results = json.loads((output / "instances.json").read_text())
    assert {r["file_name"] for r in results} == {"000.png", "002.png"}
    assert {path.name for path in output.iterdir()} == {"instances.json", "log.txt"}


def test_demo_refuses_unusable_folders(tmp_path, detector):
    draw_instances(tmp_path / "in", num_images=1)
    for inputs, output, words in [
        (tmp_path / "gone*", "out", r"gone\*"),
        (tmp_path / "in", "in", "--output"),
        (tmp_path, "in", "--output"),
    ]:
        with pytest.raises(UserError, match=words):
            run_demo([inputs], tmp_path / output, detector)


def run_tool(name, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", [name, "--config-file", str(CONFIG), *map(str, arguments)])
    runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")


def test_demo_as_a_command(tmp_path, detector, monkeypatch, capsys):
    """Settings may follow the images; a broken one gives exit code 1, a wrong option 2."""
    draw_instances(tmp_path / "in", num_images=2)
    (tmp_path / "in" / "001.png").write_bytes(b"not an image")
    images = [tmp_path / "in" / "000.png", tmp_path / "in" / "001.png"]
    settings = [*TINY_DETECTOR, f"train.init_checkpoint={detector}"]
    arguments = ["--output", tmp_path / "out", "--confidence-threshold", 0, "--input", *images]
    run_tool("demo.py", monkeypatch, *arguments[:-1], *settings)
    assert (tmp_path / "out" / "000.png").is_file()
    with pytest.raises(SystemExit, match="1"):
        run_tool("demo.py", monkeypatch, *arguments, *settings)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        run_tool("demo.py", monkeypatch, *arguments, *settings, "--tile-size", "-5")
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "-5" in errors[0]


def test_drawings_show_boxes_masks_and_labels():
    image = Image.new("RGB", (200, 100))
    box, mask = [50, 40, 130, 90], torch.zeros(1, 28, 28)
    mask[:, :, :14] = 1  # the left half
    instances = Instances((100, 200), pred_boxes=Boxes(torch.tensor([box]).float()))
    instances.scores, instances.pred_classes = torch.tensor([0.876]), torch.tensor([1])
    plain = np.asarray(draw_detections(image, instances, ["cat", "dog"]))
    assert plain[90, 60:120].any(axis=1).all() and not plain[45:88, 55:125].any()
    label = plain[20:39, 50:130].any(axis=2)
    assert label.mean() > 0.3
    instances.pred_masks = InstanceMasks.paste(mask, instances.pred_boxes.tensor, (100, 200))
    masked = np.asarray(draw_detections(image, instances, ["cat", "dog"]))
    assert masked[45:85, 55:85].any(axis=2).all() and not masked[45:85, 95:125].any()
    assert not np.asarray(image).any()  # a copy is drawn into
