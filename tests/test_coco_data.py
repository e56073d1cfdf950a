"""COCO-format data of one's own: what follows from the files, and what is refused."""

import json

import numpy as np
import pytest
import torch
from common import ROOT, data_settings
from detectron2.config import instantiate
from detectron2.data import DatasetMapper, MetadataCatalog
from PIL import Image

from lomar_det.data import RGBDatasetMapper, configure_data, read_coco_summary
from lomar_det.engine.config import load_config
from lomar_det.errors import UserError
from lomar_det.images import load_image
from lomar_det.stream import seeded

CONFIG = ROOT / "configs/custom/mask_rcnn_lomar_vit_tiny.py"


def edit(annotations, change):
    data = json.loads(annotations.read_text())
    change(data)
    annotations.write_text(json.dumps(data))


def configured(drawn_set, *opts):
    cfg = load_config(CONFIG, [*data_settings(*drawn_set), *opts])
    configure_data(cfg)
    return cfg


def test_classes_come_from_the_file(drawn_set):
    cfg = configured(drawn_set)
    assert cfg.model.roi_heads.num_classes == 2
    model = instantiate(cfg.model)
    assert model.roi_heads.box_predictor.cls_score.out_features == 3
    assert model.roi_heads.mask_head.predictor.out_channels == 2
    # in the order of the ids, which have holes
    assert MetadataCatalog.get("custom_train").thing_classes == ["disc", "square"]


def test_boxes_only_turns_the_mask_head_off_and_says_so(drawn_set, lomar_log):
    edit(drawn_set[0], lambda d: [a.pop("segmentation") for a in d["annotations"]])
    cfg = configured(drawn_set)
    assert "boxes only: the mask head is off" in lomar_log.text
    assert not hasattr(instantiate(cfg.model).roi_heads, "mask_head")
    assert not cfg.dataloader.train.mapper.use_instance_mask


def test_the_mask_head_can_be_switched_off_by_hand(drawn_set):
    cfg = configured(drawn_set, "model.roi_heads.mask_head=null")
    assert not instantiate(cfg.model).roi_heads.mask_on
    assert not cfg.dataloader.train.mapper.recompute_boxes


def test_one_missing_mask_is_counted(drawn_set, lomar_log):
    edit(drawn_set[0], lambda d: d["annotations"][0].pop("segmentation"))
    cfg = configured(drawn_set)
    total = read_coco_summary(*drawn_set).num_instances
    assert f"masks for {total - 1} of {total} objects: the mask head is off" in lomar_log.text
    assert cfg.model.roi_heads.mask_head is None


@pytest.mark.parametrize("change", [{"id": 0}, {"area": None}, {"iscrowd": None}])
def test_what_only_evaluation_needs_is_asked_of_val_only(drawn_set, change):
    def apply(data):
        first = data["annotations"][0]
        first.update(change)
        for key in [key for key, value in first.items() if value is None]:
            del first[key]

    edit(drawn_set[0], apply)
    read_coco_summary(*drawn_set)
    with pytest.raises(UserError, match="evaluation needs"):
        read_coco_summary(*drawn_set, for_evaluation=True)


@pytest.mark.parametrize("name", ["with space", "(1)", "a,b", "ü", "a=b", "2019"])
def test_paths_of_all_kinds_can_be_given(name):
    cfg = load_config(CONFIG, [f"data.val.images=/data/{name}", f"data.train.images={name}"])
    assert cfg.data.val.images == f"/data/{name}" and str(cfg.data.train.images) == name


def test_depth_decides_which_blocks_attend_globally():
    path = ROOT / "configs/custom/mask_rcnn_lomar_vit_b.py"
    for depth, expected in ((12, {2, 5, 8, 11}), (24, {5, 11, 17, 23})):
        cfg = load_config(path, [f"model.backbone.net.depth={depth}"])
        windowed = set(instantiate(cfg.model.backbone.net.window_block_indexes))
        assert set(range(depth)) - windowed == expected


def test_iterations_follow_from_epochs(drawn_set):
    cfg = configured(drawn_set, "train.epochs=5", "dataloader.train.total_batch_size=4")
    assert cfg.train.max_iter == 8  # ceil(5 * 6 / 4)


def test_crowded_pictures_keep_more_detections(drawn_set):
    def crowd(data):
        first = data["annotations"][0]
        data["annotations"] += [first | {"id": 1000 + i} for i in range(130)]

    edit(drawn_set[0], crowd)
    cfg = configured(drawn_set)
    assert cfg.model.roi_heads.box_predictor.test_topk_per_image == 200
    assert cfg.dataloader.evaluator.max_dets_per_image == 200


def test_rle_masks_are_read_as_bitmasks(drawn_set):
    rle = {"size": [64, 96], "counts": [10, 6134]}
    edit(drawn_set[0], lambda d: d["annotations"][0].update(segmentation=rle))
    assert configured(drawn_set).dataloader.train.mapper.instance_mask_format == "bitmask"


def test_crowds_do_not_count(drawn_set):
    before = read_coco_summary(*drawn_set)
    edit(drawn_set[0], lambda d: d["annotations"][0].update(iscrowd=1))
    assert read_coco_summary(*drawn_set).num_instances == before.num_instances - 1


BROKEN = {
    "missing picture": (lambda d: d["images"][0].update(file_name="gone.png"), "gone.png"),
    "no categories key": (lambda d: d.pop("categories"), "'categories'"),
    "no categories": (lambda d: d["categories"].clear(), "no categories"),
    "no images": (lambda d: (d["images"].clear(), d["annotations"].clear()), "no images"),
    "no bbox": (lambda d: d["annotations"][1].pop("bbox"), "entry 1.*'bbox'"),
    "no width": (lambda d: d["images"][2].pop("width"), "entry 2.*'width'"),
    "unknown image": (lambda d: d["annotations"][0].update(image_id=99), "unknown image_id"),
    "unknown category": (lambda d: d["annotations"][0].update(category_id=5), "category_id"),
    "same id twice": (lambda d: d["annotations"][1].update(id=1), "an id that another"),
    "not a list": (lambda d: d.update(images={}), "no list 'images'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_annotations_are_one_clear_error(drawn_set, name):
    change, words = BROKEN[name]
    edit(drawn_set[0], change)
    with pytest.raises(UserError, match=words) as error:
        read_coco_summary(*drawn_set)
    assert str(drawn_set[0]) in str(error.value)


def scale_boxes(factor):
    def change(data):
        for annotation in data["annotations"]:
            annotation["bbox"] = [value * factor for value in annotation["bbox"]]

    return change


def corners(data):
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x + 40, y + 40, x + w + 40, y + h + 40]


@pytest.mark.parametrize(
    "change, words",
    [
        (scale_boxes(0.005), "normalised"),
        (corners, "not corners"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3]), "four numbers"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3, float("nan")]), "four numbers"),
        (lambda d: d["annotations"][0].update(bbox="1 2 3 4"), "four numbers"),
        (
            lambda d: d["images"][0].update(width=64, height=96),
            "000.png says 64 x 96, the file is 96 x 64",
        ),
        (lambda d: d["categories"].append(d["categories"][0]), "categories that have the same id"),
    ],
)
def test_boxes_and_sizes_that_cannot_be_right_are_refused(drawn_set, change, words):
    edit(drawn_set[0], change)
    with pytest.raises(UserError, match=words):
        read_coco_summary(*drawn_set)


def test_a_few_bad_boxes_are_counted(drawn_set, lomar_log):
    edit(drawn_set[0], lambda d: d["annotations"][0].update(bbox=[5, 5, 0, 9]))
    read_coco_summary(*drawn_set)
    assert "boxes without width or height (1), first annotation 1 (000.png)" in lomar_log.text


def test_the_detector_sees_what_pretraining_sees(tmp_path):
    """16-bit pictures above all: detectron2's own reader turns them white."""
    path = tmp_path / "x.png"
    Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)).save(path)
    mapper = RGBDatasetMapper(is_train=False, augmentations=[], image_format="RGB")
    image = mapper({"file_name": str(path), "width": 16, "height": 16})["image"]
    assert torch.equal(image, torch.as_tensor(np.array(load_image(path))).permute(2, 0, 1))
    assert image.min() == 0 and image.max() == 255


def test_mapper_equals_detectron2s_on_plain_pictures(drawn_set):
    cfg = configured(drawn_set)
    ours = instantiate(cfg.dataloader.train.mapper)
    entry = instantiate(cfg.dataloader.train.dataset)[0]
    theirs = DatasetMapper(
        is_train=True,
        augmentations=list(ours.augmentations.augs),
        image_format="RGB",
        use_instance_mask=True,
        recompute_boxes=True,
    )
    samples = []
    for mapper in (ours, theirs):
        with seeded(4):
            samples.append(mapper(entry))
    a, b = samples
    assert torch.equal(a["image"], b["image"])
    assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
    assert torch.equal(a["instances"].gt_classes, b["instances"].gt_classes)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"x"'])
def test_files_that_are_not_coco_json_are_named(drawn_set, content):
    drawn_set[0].write_text(content)
    with pytest.raises(UserError, match="annotations.json"):
        read_coco_summary(*drawn_set)


def test_missing_files_and_settings_are_named(drawn_set, tmp_path):
    with pytest.raises(UserError, match="nothing.json does not exist; set data"):
        read_coco_summary(tmp_path / "nothing.json", drawn_set[1])
    with pytest.raises(UserError, match="image folder .*elsewhere does not exist"):
        read_coco_summary(drawn_set[0], tmp_path / "elsewhere")
    cfg = load_config(CONFIG, [f"data.val.annotations={drawn_set[0]}"])
    with pytest.raises(UserError, match="data.val.images is not set"):
        configure_data(cfg)


def test_different_categories_are_refused(drawn_set, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(drawn_set[0].read_text().replace("disc", "ring"))
    with pytest.raises(UserError, match="different categories"):
        configured(drawn_set, f"data.val.annotations={other}")


@pytest.mark.parametrize(
    "override, words",
    [
        ("train.epoch=3", "no setting 'train.epoch'.*epochs"),
        ("data.trian.images=x", "no setting"),
        ("nonsense", "not an override"),
        ("model.backbone.net.embed_dim", "not an override"),
        ("model.backbone.net.window=7", "no setting.*window_size"),
        ("optimizer.weight_deacy=0", "no setting.*weight_decay"),
        ("model.roi_heads.box_head.fc_dim=8", "no setting.*fc_dims"),
    ],
)
def test_mistyped_overrides_are_refused(override, words):
    with pytest.raises(UserError, match=words):
        load_config(CONFIG, [override])


def test_missing_config_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.py does not exist"):
        load_config(tmp_path / "nowhere.py", [])


def test_shared_sets_are_understood(shared_data):
    kinds = {"nuclei-dsb2018": (1, True), "coco-permissive": (80, True), "bccd-boxes": (3, False)}
    for name, (classes, masks) in kinds.items():
        folder = shared_data / name
        summary = read_coco_summary(folder / "annotations_train.json", folder / "images")
        assert (len(summary.class_names), summary.has_masks) == (classes, masks)
