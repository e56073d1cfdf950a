"""Tiles of whole images: their objects are those that the pixels show, and nothing is written."""

import copy
import json

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from helpers.common import TINY_DETECTOR, data_settings, tool_args

from lomar_det.config.lazy import load_config
from lomar_det.data import RGBDatasetMapper, Tiles, configure_data
from lomar_det.data.images import load_image
from lomar_det.data.tiles.tiled_dataset import (
    choose_tile_size,
    cut_annotations,
    visible_shares,
)
from lomar_det.errors import UserError

CONFIG = tool_args("custom/mask_rcnn_lomar_vit_tiny.py").config_file


@pytest.fixture
def dataset(drawn_set):
    """The drawn set in detectron2's standard format."""
    configure_data(load_config(CONFIG, data_settings(*drawn_set)))
    return DatasetCatalog.get("custom_train")


def mapper(masks="polygon"):
    return RGBDatasetMapper(
        is_train=True, augmentations=[], image_format="RGB", use_instance_mask=True,
        instance_mask_format=masks, recompute_boxes=True,
    )  # fmt: skip


def as_run_lengths(dataset):
    dataset = copy.deepcopy(dataset)
    for image in dataset:
        size = image["height"], image["width"]
        for annotation in image["annotations"]:
            parts = coco_mask.frPyObjects(annotation["segmentation"], *size)
            annotation["segmentation"] = coco_mask.merge(parts)
    return dataset


def test_tiles_cover_images_and_show_their_pixels(dataset):
    tiles = Tiles(40, 16, min_visible=0.0, empty=1e9)(dataset)
    for image in dataset:
        own = [tile for tile in tiles if tile["image_id"] == image["image_id"]]
        covered = np.zeros((image["height"], image["width"]), bool)
        pixels = np.asarray(load_image(image["file_name"]))
        for tile in own:
            x0, y0, x1, y1 = tile["tile"]
            covered[y0:y1, x0:x1] = True
            shown = mapper()(tile)["image"].permute(1, 2, 0).numpy()
            assert np.array_equal(shown, pixels[y0:y1, x0:x1])
        assert covered.all()


@pytest.mark.parametrize("kind", ["polygon", "bitmask"])
def test_masks_are_cut_as_their_pixels(dataset, kind):
    """To a pixel along the border: polygons lie between pixels."""
    given = dataset if kind == "polygon" else as_run_lengths(dataset)
    tiles = [t for t in Tiles(40, 16, min_visible=0.0)(given) if t["annotations"]]
    compared = 0
    for tile in tiles:
        x0, y0, x1, y1 = tile["tile"]
        whole = next(image for image in dataset if image["image_id"] == tile["image_id"])
        size = whole["height"], whole["width"]
        expected = []
        for annotation in whole["annotations"]:
            mask = coco_mask.decode(
                coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], *size))
            )
            if mask[y0:y1, x0:x1].sum() > 20:
                expected.append(mask[y0:y1, x0:x1])
        instances = mapper(kind)(tile)["instances"]
        masks = instances.gt_masks
        if kind == "polygon":
            found = [
                coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(p, y1 - y0, x1 - x0)))
                for p in ([part.tolist() for part in parts] for parts in masks.polygons)
            ]
        else:
            found = list(masks.tensor.numpy().astype(np.uint8))
        for mask in expected:
            best = min(int((mask != other).sum()) for other in found)
            assert best <= 0.1 * mask.sum()
            compared += 1
        boxes = instances.gt_boxes.tensor
        assert (
            (boxes >= 0).all() and (boxes[:, 2] <= x1 - x0).all() and (boxes[:, 3] <= y1 - y0).all()
        )
    assert compared > 20


def test_a_polygon_that_crosses_itself_keeps_all_its_parts():
    bow = [20, 20, 180, 180, 180, 20, 20, 180]
    annotation = {"bbox": [20, 20, 160, 160], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    image = {"file_name": "x", "annotations": [annotation | {"segmentation": [bow]}]}
    for tile, area in (((0, 0, 200, 200), 12_800), ((0, 0, 100, 200), 6400)):
        (own,) = cut_annotations(image | {"tile": tile})
        size = tile[3], tile[2]
        mask = coco_mask.merge(
            coco_mask.frPyObjects([p.tolist() for p in own["segmentation"]], *size)
        )
        assert abs(int(coco_mask.area(mask)) - area) < 0.03 * area


def test_objects_that_no_tile_shows_are_counted_or_refused(drawn_set, lomar_log):
    settings = [*data_settings(*drawn_set), "data.tile_overlap=0"]
    # of the objects, only those that no border cuts
    configure_data(load_config(CONFIG, [*settings, "data.tile_size=40", "data.min_visible=1"]))
    assert "data.tile_overlap" in lomar_log.text
    data = json.loads(drawn_set[0].read_text())
    for annotation in data["annotations"]:
        annotation["bbox"] = [0, 0, 64, 64]
        del annotation["segmentation"]
    drawn_set[0].write_text(json.dumps(data))
    with pytest.raises(UserError, match="data.tile_size=32"):
        configure_data(load_config(CONFIG, [*settings, "data.tile_size=32"]))


def test_objects_count_where_enough_is_visible():
    boxes = np.array([[0, 0, 10, 10], [30, 0, 50, 10], [90, 90, 95, 95]], dtype=float)
    np.testing.assert_allclose(visible_shares(boxes, (0, 0, 40, 40)), [1, 0.5, 0])
    image = {"file_name": "x", "image_id": 1, "width": 100, "height": 40, "annotations": []}
    for box in boxes[:2]:
        image["annotations"].append(
            {"bbox": box.tolist(), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
        )

    def numbers(**settings):
        tiles = Tiles(40, 0, **settings)([image])
        return [(tile["tile"][0], len(tile["annotations"])) for tile in tiles]

    # 100 pixels in three parts: 0 to 33, 33 to 67, 67 to 100
    assert numbers(min_visible=0.4) == [(0, 1), (33, 1)]
    # 3 of 20 pixels of the second object lie in the first tile, 17 in the second
    assert numbers(min_visible=0.1) == [(0, 2), (33, 1)]
    assert numbers(min_visible=0.9) == [(0, 1)]  # the second tile would teach a wrong thing
    assert numbers(min_visible=0.9, empty=1.0) == [(0, 1), (67, 0)]


def test_without_a_size_nothing_changes(dataset):
    assert Tiles()(dataset) is dataset


def test_the_size_follows_from_the_objects(dataset):
    sides = [np.prod(a["bbox"][2:]) ** 0.5 for image in dataset for a in image["annotations"]]
    assert abs(choose_tile_size(dataset, 256) - 16 * np.median(sides)) <= 16
    assert choose_tile_size(dataset, 4096) == 1024  # not below a quarter of what the model sees
    assert choose_tile_size([], 1024) == 1024


def test_epochs_count_tiles(drawn_set, lomar_log):
    settings = [*data_settings(*drawn_set), "data.tile_size=48", "data.tile_overlap=16"]
    cfg = load_config(CONFIG, settings)
    facts = configure_data(cfg)
    tiles = Tiles(48, 16)(DatasetCatalog.get("custom_train"))
    assert facts.num_images == len(tiles) > 6 and facts.tile_size == 48
    auto = configure_data(load_config(CONFIG, [*settings[:-2], "data.tile_size=auto"]))
    assert auto.apply(cfg).data.tile_size == auto.tile_size >= 32
    with pytest.raises(UserError, match="overlap"):
        configure_data(load_config(CONFIG, [*settings[:-1], "data.tile_overlap=48"]))
    with pytest.raises(UserError, match="config.yaml"):  # val's objects may be of another size
        configure_data(load_config(CONFIG, [*settings[:-2], "data.tile_size=auto"]), training=False)


def test_huge_run_lengths_are_refused(dataset):
    image = as_run_lengths(dataset)[0]
    for annotation in image["annotations"]:
        annotation["segmentation"]["size"] = [40_000, 40_000]
    with pytest.raises(UserError, match="polygons"):
        mapper("bitmask")(Tiles(96, 0)([image])[0])


@pytest.mark.run
def test_trained_and_evaluated_in_tiles(tmp_path, drawn_set):
    """A stopped run goes on with the same tiles; whole-image AP comes out."""
    from lomar_det.detection.train import main

    config = "custom/mask_rcnn_lomar_vit_tiny.py"
    settings = [*TINY_DETECTOR, *data_settings(*drawn_set), "data.tile_size=48"]
    settings += ["train.checkpointer.period=2", "data.tile_overlap=20", "data.image_size=64"]
    found = {}
    for name in ("once", "twice"):
        args = tool_args(config, *settings, f"train.output_dir={tmp_path / name}")
        if name == "twice":
            main(args)
            folder = tmp_path / name
            for path in (*folder.glob("*_final.pth"), folder / "model_0000003.pth"):
                path.unlink(missing_ok=True)
            (folder / "last_checkpoint").write_text("model_0000001.pth")
            args.resume = True
        found[name] = main(args)
    results = [
        json.loads((tmp_path / name / "inference" / "coco_instances_results.json").read_text())
        for name in ("once", "twice")
    ]
    assert results[0] == results[1] and found["once"].keys() == {"bbox", "segm"}
    sizes = {
        image["id"]: (image["height"], image["width"])
        for image in json.loads(drawn_set[0].read_text())["images"]
    }
    for result in results[0]:
        assert tuple(result["segmentation"]["size"]) == sizes[result["image_id"]]
