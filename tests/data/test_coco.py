"""COCO-format data of one's own: what follows from the files, and what is refused."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.utils.events import EventStorage
from helpers.common import ROOT, TINY_DETECTOR, data_settings, drop_masks, edit_json
from PIL import Image

from lomar_det.config.lazy import load_config
from lomar_det.data import RGBDatasetMapper, configure_data, read_coco_summary
from lomar_det.data.images import load_image
from lomar_det.data.stream import seeded
from lomar_det.errors import UserError

CONFIG = ROOT / "configs/custom/mask_rcnn_lomar_vit_tiny.py"


def configured(drawn_set, *opts):
    cfg = load_config(CONFIG, [*data_settings(*drawn_set), *opts])
    return configure_data(cfg).apply(cfg)


def num_images(drawn_set, *opts):
    """To train on."""
    return configure_data(load_config(CONFIG, [*data_settings(*drawn_set), *opts])).num_images


def test_classes_come_from_the_file(drawn_set):
    cfg = configured(drawn_set)
    assert cfg.model.roi_heads.num_classes == 2
    model = instantiate(cfg.model)
    assert model.roi_heads.box_predictor.cls_score.out_features == 3
    assert model.roi_heads.mask_head.predictor.out_channels == 2
    # in the order of the ids, which have holes
    assert MetadataCatalog.get("custom_train").thing_classes == ["disc", "square"]


def test_boxes_only_turns_the_mask_head_off_and_says_so(drawn_set, lomar_log):
    edit_json(drawn_set[0], drop_masks)
    cfg = configured(drawn_set)
    assert "mask head" in lomar_log.text
    assert not hasattr(instantiate(cfg.model).roi_heads, "mask_head")
    assert not cfg.dataloader.train.mapper.use_instance_mask


def test_the_mask_head_can_be_switched_off_by_hand(drawn_set):
    cfg = configured(drawn_set, "model.roi_heads.mask_head=null")
    assert not instantiate(cfg.model).roi_heads.mask_on
    assert not cfg.dataloader.train.mapper.recompute_boxes


def test_one_missing_mask_is_counted(drawn_set, lomar_log):
    edit_json(drawn_set[0], lambda d: d["annotations"][0].pop("segmentation"))
    cfg = configured(drawn_set)
    total = read_coco_summary(*drawn_set).num_instances
    assert f"{total - 1} of {total} " in lomar_log.text
    assert cfg.model.roi_heads.mask_head is None


def test_what_only_evaluation_needs_is_asked_of_val_only(drawn_set):
    edit_json(drawn_set[0], lambda d: d["annotations"][0].pop("area"))
    read_coco_summary(*drawn_set)
    with pytest.raises(UserError, match=drawn_set[0].name):
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


def test_crowded_images_keep_more_detections(drawn_set):
    def crowd(data):
        first = data["annotations"][0]
        data["annotations"] += [first | {"id": 1000 + i} for i in range(130)]

    edit_json(drawn_set[0], crowd)
    cfg = configured(drawn_set)
    assert cfg.model.roi_heads.box_predictor.test_topk_per_image == 200
    assert cfg.dataloader.evaluator.max_dets_per_image == 200


def test_rle_masks_are_read_as_bitmasks(drawn_set):
    rle = {"size": [64, 96], "counts": [10, 6134]}
    edit_json(drawn_set[0], lambda d: d["annotations"][0].update(segmentation=rle))
    assert configured(drawn_set).dataloader.train.mapper.instance_mask_format == "bitmask"


@pytest.mark.parametrize("limit", [0, "many"])
def test_max_detections_is_a_number_or_auto(drawn_set, limit):
    with pytest.raises(UserError, match="data.max_detections.*auto"):
        configured(drawn_set, f"data.max_detections={limit}")


def as_runs(annotation, size, compressed):
    """A polygon mask as COCO's run-length encoding."""
    rle = mask_util.merge(mask_util.frPyObjects(annotation["segmentation"], *size))
    if compressed:
        return {"size": size, "counts": rle["counts"].decode()}
    pixels = mask_util.decode(rle).flatten("F")
    edges = np.flatnonzero(np.diff(pixels, prepend=0))
    return {"size": size, "counts": np.diff([0, *edges, pixels.size]).tolist()}


def test_polygons_and_run_lengths_may_be_mixed(drawn_set):
    """The same pixels arrive, whatever the format of each object."""
    mapper_settings = ["dataloader.train.mapper.instance_mask_format=bitmask"]
    mapper_settings.append("dataloader.train.mapper.augmentations=[]")
    polygons = configured(drawn_set, *mapper_settings)
    mapper, dataset = (instantiate(polygons.dataloader.train[k]) for k in ("mapper", "dataset"))
    expected = [mapper(entry)["instances"] for entry in dataset]

    def mix(data):
        sizes = {i["id"]: [i["height"], i["width"]] for i in data["images"]}
        for number, a in enumerate(data["annotations"]):
            if number % 3:
                a["segmentation"] = as_runs(a, sizes[a["image_id"]], compressed=number % 3 == 1)

    edit_json(drawn_set[0], mix)
    mixed = configured(drawn_set, "dataloader.train.mapper.augmentations=[]")
    assert mixed.dataloader.train.mapper.instance_mask_format == "bitmask"
    mapper = instantiate(mixed.dataloader.train.mapper)
    for entry, before in zip(instantiate(mixed.dataloader.train.dataset), expected, strict=True):
        after = mapper(entry)["instances"]
        assert torch.equal(after.gt_masks.tensor.bool(), before.gt_masks.tensor.bool())
        assert torch.equal(after.gt_boxes.tensor, before.gt_boxes.tensor)


def remove_objects_of(images):
    def change(data):
        data["annotations"] = [a for a in data["annotations"] if a["image_id"] not in images]

    return change


@pytest.mark.parametrize("masks", ["", "model.roi_heads.mask_head=null"])
def test_images_without_objects_are_trained_on_if_asked_for(drawn_set, masks):
    edit_json(drawn_set[0], remove_objects_of([0, 1]))
    assert num_images(drawn_set) == 4
    settings = [*TINY_DETECTOR, *([masks] if masks else []), "data.filter_empty=False"]
    assert num_images(drawn_set, *settings) == 6
    cfg = configured(drawn_set, *settings)
    dataset, mapper = (instantiate(cfg.dataloader.train[key]) for key in ("dataset", "mapper"))
    assert [len(entry["annotations"]) > 0 for entry in dataset] == [False, False] + [True] * 4
    samples = [mapper(entry) for entry in dataset]
    assert (
        len(samples[0]["instances"]) == 0 and samples[0]["instances"].gt_boxes.tensor.numel() == 0
    )
    model = instantiate(cfg.model)
    for batch in (samples[:2], samples[1:3]):
        with EventStorage():
            losses = model(batch)
        assert all(torch.isfinite(loss) for loss in losses.values())
        sum(losses.values()).backward()
    assert model.backbone.net.patch_embed.proj.weight.grad.abs().sum() > 0


def test_training_takes_several_annotation_files(drawn_set, tmp_path):
    data = json.loads(drawn_set[0].read_text())
    parts = []
    for name, keep in (("a", {0, 1}), ("b", {2, 3, 4, 5})):
        part = data | {"images": [i for i in data["images"] if i["id"] in keep]}
        part["annotations"] = [a for a in data["annotations"] if a["image_id"] in keep]
        parts.append(tmp_path / f"{name}.json")
        parts[-1].write_text(json.dumps(part))
    files = f"data.train.annotations=[{parts[0]},{parts[1]}]"
    assert num_images(drawn_set, files) == 6
    cfg = configured(drawn_set, files)
    assert len(instantiate(cfg.dataloader.train.dataset)) == 6
    with pytest.raises(UserError, match="data.train"):
        configured(drawn_set, files, "data.train.images=[a,b,c]")
    with pytest.raises(UserError, match="data.val.annotations"):
        configured(drawn_set, files.replace("train", "val"))
    parts[1].write_text(parts[1].read_text().replace("disc", "ring"))
    with pytest.raises(UserError, match="b.json.*ring"):
        configured(drawn_set, files)


def test_images_may_lie_in_subfolders(drawn_set):
    annotations, images = drawn_set
    (images / "day 1").mkdir()
    (images / "000.png").rename(images / "day 1" / "000.png")
    edit_json(annotations, lambda d: d["images"][0].update(file_name="day 1/000.png"))
    cfg = configured(drawn_set)
    entry = instantiate(cfg.dataloader.train.dataset)[0]
    assert entry["file_name"].endswith("day 1/000.png")
    assert instantiate(cfg.dataloader.train.mapper)(entry)["image"].shape[0] == 3


def test_crowds_do_not_count(drawn_set):
    before = read_coco_summary(*drawn_set)
    edit_json(drawn_set[0], lambda d: d["annotations"][0].update(iscrowd=1))
    assert read_coco_summary(*drawn_set).num_instances == before.num_instances - 1


def test_the_detector_sees_what_pretraining_sees(tmp_path):
    """16-bit images above all: detectron2's own reader turns them white."""
    path = tmp_path / "x.png"
    Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)).save(path)
    mapper = RGBDatasetMapper(is_train=False, augmentations=[], image_format="RGB")
    image = mapper({"file_name": str(path), "width": 16, "height": 16})["image"]
    assert torch.equal(image, torch.as_tensor(np.array(load_image(path))).permute(2, 0, 1))
    assert image.min() == 0 and image.max() == 255


def test_mapper_equals_detectron2s_on_plain_images(drawn_set):
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


def test_missing_files_and_settings_are_named(drawn_set, tmp_path):
    with pytest.raises(UserError, match="nothing.json.*data.*annotations"):
        read_coco_summary(tmp_path / "nothing.json", drawn_set[1])
    with pytest.raises(UserError, match="elsewhere.*data.*images"):
        read_coco_summary(drawn_set[0], tmp_path / "elsewhere")
    cfg = load_config(CONFIG, [f"data.val.annotations={drawn_set[0]}"])
    with pytest.raises(UserError, match="data.train.annotations"):
        configure_data(cfg)
    with pytest.raises(UserError, match="data.val.images"):
        configure_data(cfg, training=False)


def test_different_categories_are_refused(drawn_set, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(drawn_set[0].read_text().replace("disc", "ring"))
    with pytest.raises(UserError, match="other.json"):
        configured(drawn_set, f"data.val.annotations={other}")


@pytest.mark.parametrize(
    "override, words",
    [
        ("train.epoch=3", "train.epoch.*epochs"),
        ("nonsense", "nonsense"),
        ("optimizer.weight_deacy=0", "weight_deacy.*weight_decay"),
    ],
)
def test_mistyped_overrides_are_refused(override, words):
    with pytest.raises(UserError, match=words):
        load_config(CONFIG, [override])


def test_missing_config_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.py"):
        load_config(tmp_path / "nowhere.py", [])
