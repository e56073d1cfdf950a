"""Every detection config: builds, and has the schedule that its name and its documentation say."""

import runpy

import pytest
import torch
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from helpers.common import ROOT, detector_batch, draw_instances
from omegaconf import OmegaConf

from lomar_det.config.lazy import instantiate_section, thawed, with_settings
from lomar_det.data import configure_data
from lomar_det.detection.settings import check_detection_config
from lomar_det.detection.yaml_route import load_any_config
from lomar_det.engine.schedules import count_iterations
from lomar_det.errors import UserError
from lomar_det.modeling.build import build_model

CONFIGS = ROOT / "configs"
COCO = sorted(p for p in (CONFIGS / "coco").iterdir() if p.suffix in (".py", ".yaml"))
CUSTOM = sorted(p for p in (CONFIGS / "custom").iterdir() if p.suffix in (".py", ".yaml"))
COCO = [path for path in COCO if not path.name.startswith("Base")]
ITERATIONS = {"25ep": 46094, "75ep": 138282, "100ep": 184375}
# depth, width, global blocks, drop path, layer decay: ViTDet, section 4 and its released configs
SIZES = {
    "s": (12, 384, [2, 5, 8, 11], 0.1, 0.7),
    "b": (12, 768, [2, 5, 8, 11], 0.1, 0.7),
    "l": (24, 1024, [5, 11, 17, 23], 0.4, 0.8),
    "h": (32, 1280, [7, 15, 23, 31], 0.5, 0.9),
}


def load(path, *overrides):
    cfg = load_any_config(path, list(overrides))
    check_detection_config(cfg, path)
    return cfg


def iterations(cfg):
    settings = check_detection_config(cfg, "the config")
    batch = cfg.dataloader.train.total_batch_size
    return count_iterations(settings, batch, cfg.data.num_images, cfg.optimizer.lr)


def build_on_meta(cfg):
    with torch.device("meta"):
        return build_model(cfg)


@pytest.mark.parametrize("path", COCO, ids=lambda path: path.name)
def test_coco_configs_are_what_their_names_say(path):
    cfg = load(path)
    assert configure_data(cfg) is None
    words = path.stem.split("_")
    assert cfg.train.output_dir == f"output/{path.stem}"
    assert iterations(cfg) == ITERATIONS[words[-1]]
    cfg = with_settings(cfg, {"train.max_iter": iterations(cfg)})
    assert cfg.dataloader.train.total_batch_size == 64 and cfg.optimizer.lr == 1e-4
    schedule = instantiate(cfg.lr_multiplier)
    at = lambda share: schedule(share)  # noqa: E731
    assert [at(s) for s in (0.01, 0.888, 0.89, 0.962, 0.964)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )
    model = build_on_meta(cfg)
    depth, width, global_blocks, drop_path, lr_decay = SIZES[words[words.index("vit") + 1]]
    net = model.backbone.net
    assert [i for i, b in enumerate(net.blocks) if not b.attn.window_size] == global_blocks
    assert (len(net.blocks), net.patch_embed.proj.out_channels) == (depth, width)
    assert net.blocks[-1].drop_path.drop_prob == pytest.approx(drop_path)
    assert cfg.optimizer.params.lr_decay_rate == lr_decay
    assert (net.pos_embed is not None) == ("mae" in words or "abs" in words)
    rel_pos = "decomposed" if "mae" in words else "none" if "abs" in words else "irpe"
    assert {block.attn.rel_pos for block in net.blocks} == {rel_pos}
    assert isinstance(model.roi_heads.box_head, torch.nn.ModuleList) == ("cascade" in words)
    assert model.backbone.padding_constraints == {"size_divisibility": 32, "square_size": 1024}
    assert instantiate_section(cfg, "optimizer.params", model=model)  # the decay fits the depth


@pytest.mark.parametrize("path", CUSTOM, ids=lambda path: path.name)
def test_custom_configs_take_the_users_data(path, drawn_set):
    keys = ("data.{}.annotations", "data.{}.images"), ("train", "val")
    if path.suffix == ".yaml":
        keys = ("DATASETS.{}_JSON_FILE", "DATASETS.{}_IMAGE_ROOT"), ("TRAIN", "TEST")
    overrides = []
    for split in keys[1]:
        for key, value in zip(keys[0], drawn_set, strict=True):
            pair = key.format(split), str(value)
            overrides += pair if path.suffix == ".yaml" else ["=".join(pair)]
    cfg = load(path, *overrides)
    facts = configure_data(cfg)
    assert facts.num_images >= 1
    model = build_on_meta(facts.apply(cfg))
    predictors = model.roi_heads.box_predictor
    for predictor in predictors if isinstance(predictors, torch.nn.ModuleList) else [predictors]:
        assert predictor.num_classes == 2 and predictor.test_topk_per_image == 100
    assert model.roi_heads.mask_head.predictor.out_channels == 2


def test_the_table_lists_every_config():
    table = (CONFIGS / "coco" / "README.md").read_text()
    rows = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    assert rows == {path.name for path in COCO}


def test_the_vitae_variant_differs_in_weight_decay_alone():
    plain, vitae = (
        OmegaConf.to_container(load(CONFIGS / "coco" / f"mask_rcnn_lomar_vit_b_{name}.py"))
        for name in ("25ep", "vitae_25ep")
    )
    params = vitae["optimizer"]["params"]
    assert params.pop("decay_vectors") is False
    assert set(params.pop("no_weight_decay")) == {
        "pos_embed",
        "lookup_table_weight",
        "rel_pos_h",
        "rel_pos_w",
    }
    vitae["train"]["output_dir"] = plain["train"]["output_dir"]
    assert vitae == plain


def test_iterations_follow_from_epochs_and_batch(lomar_log):
    path = CONFIGS / "coco" / "mask_rcnn_lomar_vit_b_25ep.py"
    cfg = load(path, "dataloader.train.total_batch_size=16", "train.epochs=12")
    assert iterations(cfg) == 12 * 118_000 / 16
    assert all(figure in lomar_log.text for figure in ("118000", "88500", "2.5e-05"))
    lomar_log.clear()
    assert iterations(load(path, "train.max_iter=10")) == 10
    assert "train.epochs=25" in lomar_log.text
    assert iterations(load(path, "train.max_minutes=10")) is None
    with pytest.raises(UserError, match="train.epochs.*train.max_iter.*train.max_minutes"):
        iterations(load(path, "train.epochs=null"))


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["data.image_size=1280", "model.backbone.square_pad=1024"], "square_pad=1024"),
        (["model.backbone.net.patch_size=14"], "patch_size=14.*box_pooler.scales"),
        (["model.backbone.net.rel_pos=decomposed", "model.backbone.net.img_size=1000"], "1000"),
    ],
)
def test_contradictions_are_refused_at_the_start(overrides, words):
    with pytest.raises(UserError, match=words):
        load(CONFIGS / "coco" / "mask_rcnn_lomar_vit_b_25ep.py", *overrides)


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["data.image_size=1000"], "square_pad.*1000"),
        (["model.backbone.net.freeze_at=14"], "freeze_at.*14"),
        (["model.backbone.net.window_size=0"], "window_size"),
        (["model.backbone.net.num_heads=7"], "embed_dim.*768.*num_heads.*7"),
    ],
)
def test_what_the_model_refuses_is_a_users_error(overrides, words):
    cfg = load(CONFIGS / "coco" / "mask_rcnn_lomar_vit_b_25ep.py", *overrides)
    with pytest.raises(UserError, match=words):
        build_on_meta(cfg)


def small_cascade():
    cfg = thawed(load(CONFIGS / "custom" / "mask_rcnn_lomar_vit_tiny.py"))
    cfg.model.roi_heads.update(num_classes=8, batch_size_per_image=16)
    runpy.run_path(CONFIGS / "common" / "models" / "cascade_rcnn.py")["cascade"](cfg.model)
    return build_model(cfg)


def test_a_cascade_trains_a_step_and_detects(tmp_path):
    model = small_cascade()
    data = draw_instances(tmp_path, 2)
    batch = detector_batch(data["images"], data["annotations"])
    with EventStorage():
        losses = model(batch)
    assert {f"loss_box_reg_stage{stage}" for stage in range(3)} | {"loss_mask"} <= losses.keys()
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    thresholds = [matcher.thresholds[1] for matcher in model.roi_heads.proposal_matchers]
    weights = [p.box2box_transform.weights for p in model.roi_heads.box_predictor]
    assert thresholds == [0.5, 0.6, 0.7]
    assert [tuple(w) for w in weights] == [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
    with torch.no_grad():
        output = model.eval()(batch[:1])[0]["instances"]
    assert output.has("pred_masks")
