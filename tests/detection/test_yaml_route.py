"""The yacs route: the model, settings, engine and errors of the LazyConfig of the same name."""

import json

import pytest
import torch
from detectron2.utils.events import EventStorage
from helpers.common import (
    ROOT,
    detector_batch,
    draw_instances,
    drop_masks,
    edit_json,
    tool_args,
)
from omegaconf import OmegaConf

from lomar_det.checkpoint.serialization import load_plain
from lomar_det.config.lazy import load_config
from lomar_det.detection import train as detection
from lomar_det.detection.yaml_route import load_any_config
from lomar_det.errors import UserError
from lomar_det.modeling.build import build_model

pytestmark = pytest.mark.run

COCO = ROOT / "configs" / "coco" / "mask_rcnn_lomar_vit_b_25ep.yaml"
CUSTOM = "custom/mask_rcnn_lomar_vit_b.yaml"
TINY = {
    "MODEL.LOMAR.EMBED_DIM": 32,
    "MODEL.LOMAR.DEPTH": 2,
    "MODEL.LOMAR.NUM_HEADS": 2,
    "MODEL.LOMAR.WINDOW_SIZE": 3,
    "MODEL.LOMAR.NUM_GLOBAL_BLOCKS": 1,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 100,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.DEVICE": "cpu",
    "INPUT.IMAGE_SIZE": 96,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 3,
    "SOLVER.CHECKPOINT_PERIOD": 1,
}
TINY = [part for pair in TINY.items() for part in pair]


def run(drawn_set, output, *opts, **flags):
    annotations, images = drawn_set
    data = []
    for split in ("TRAIN", "TEST"):
        data += [f"DATASETS.{split}_JSON_FILE", annotations]
        data += [f"DATASETS.{split}_IMAGE_ROOT", images]
    return detection.main(tool_args(CUSTOM, *TINY, *data, "OUTPUT_DIR", output, *opts, **flags))


def flatten(value, name=""):
    """Nested settings by their dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    parts = [flatten(inner, f"{name}.{key}") for key, inner in value.items()]
    return {key: leaf for part in parts for key, leaf in part.items()}


def test_coco_yaml_says_what_the_lazyconfig_says():
    yacs, lazy = load_any_config(COCO, []), load_config(COCO.with_suffix(".py"), [])
    different = set()
    for section in ("train", "data", "dataloader", "optimizer", "lr_multiplier"):
        a, b = (flatten(OmegaConf.to_container(cfg[section]), section) for cfg in (yacs, lazy))
        assert set(b) <= set(a)
        different |= {name for name in b if name in a and a[name] != b[name]}
    assert different == {
        "train.epochs",  # the yaml gives iterations, whatever the number of images
        "train.max_iter",
        "data.num_images",
        "train.lr_batch_size",
        "dataloader.train.dataset.names",  # a list there
        "dataloader.test.num_workers",  # one number for both there
        "lr_multiplier.milestones",  # whole iterations there
    }
    assert yacs.train.max_iter == 46094
    milestones = [round(share * 46094) for share in yacs.lr_multiplier.milestones]
    assert milestones == [round(46094 * 8 / 9), round(46094 * 26 / 27)]


def test_the_models_of_both_routes_compute_the_same_losses(tmp_path):
    shrink = {"embed_dim": 48, "depth": 2, "num_heads": 2, "window_size": 3}
    values = {f"model.backbone.net.{key}": value for key, value in shrink.items()}
    values |= {"model.backbone.net.window_block_indexes": [0], "model.backbone.square_pad": 96}
    values |= {"model.roi_heads.batch_size_per_image": 16}
    path = ROOT / "configs" / "coco" / "mask_rcnn_lomar_vit_b_25ep.py"
    lazy = load_config(path, [], values)
    opts = [part for key, value in shrink.items() for part in (f"MODEL.LOMAR.{key.upper()}", value)]
    opts += ["MODEL.LOMAR.NUM_GLOBAL_BLOCKS", 1, "MODEL.LOMAR.SQUARE_PAD", 96]
    opts += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16]
    yacs = load_any_config(COCO, [str(opt) for opt in opts])
    a, b = build_model(lazy), build_model(yacs)
    b.load_state_dict(a.state_dict(), strict=True)
    data = draw_instances(tmp_path / "drawn", 2)
    batch = detector_batch(data["images"], data["annotations"])
    losses = []
    for model in (a, b):
        torch.manual_seed(0)
        with EventStorage():
            losses.append(model.train()(batch))
    assert losses[0].keys() == losses[1].keys() and "loss_mask" in losses[0]
    for name in losses[0]:
        assert torch.equal(losses[0][name], losses[1][name]), name


def test_custom_yaml_trains_resumes_and_evaluates(drawn_set, tmp_path):
    out = tmp_path / "out"
    results = run(drawn_set, out)
    assert results.keys() == {"bbox", "segm"}
    final = load_plain(out / "model_final.pth")["model"]
    assert final["roi_heads.box_predictor.cls_score.weight"].shape[0] == 3  # 2 classes
    for later in ("model_final.pth", "model_0000002.pth", "model_0000001.pth", "metrics.json"):
        (out / later).unlink(missing_ok=True)
    (out / "last_checkpoint").write_text("model_0000000.pth")
    run(drawn_set, out, resume=True)
    again = load_plain(out / "model_final.pth")["model"]
    assert all(torch.equal(again[name], final[name]) for name in final)
    # its own config.yaml is a config, classes included
    args = tool_args(CUSTOM, "OUTPUT_DIR", tmp_path / "eval", eval_only=True)
    args.config_file = out / "config.yaml"
    args.opts += ["MODEL.WEIGHTS", str(out / "model_final.pth")]
    assert detection.main(args).keys() == {"bbox", "segm"}
    first, second = (
        json.loads((tmp_path / where / "inference" / "coco_instances_results.json").read_text())
        for where in ("out", "eval")
    )
    assert first == second


def test_boxes_only_turn_the_mask_head_off(drawn_set, tmp_path):
    edit_json(drawn_set[0], drop_masks)
    assert run(drawn_set, tmp_path / "out", "SOLVER.MAX_ITER", 1).keys() == {"bbox"}
    assert "MASK_ON: false" in (tmp_path / "out" / "config.yaml").read_text()


@pytest.mark.parametrize(
    "opts, words",
    [
        (["SOLVER.BASE_LRR", "1"], "SOLVER.BASE_LRR.*BASE_LR,"),
        (["SLOVER.BASE_LR", "1"], "SLOVER.BASE_LR"),
        (["train.max_iter=3"], "KEY VALUE.*train.max_iter=3"),
        (["SOLVER.IMS_PER_BATCH", "many"], "SOLVER.IMS_PER_BATCH many"),
        (["INPUT.CROP.ENABLED", "True"], "INPUT.CROP.ENABLED.*IMAGE_SIZE"),
        (["SOLVER.CLIP_GRADIENTS.ENABLED", "True"], "CLIP_TYPE full_model"),
        (["WANDB.NAME", "mine"], "WANDB.NAME.*WANDB.PROJECT"),
        (["DATASETS.TEST", "('a', 'b')"], "DATASETS.TEST"),
        (["DATASETS.TEST_JSON_FILE", "x.json"], "DATASETS.TEST_JSON_FILE.*TRAIN"),
    ],
)
def test_mistakes_are_named(opts, words):
    with pytest.raises(UserError, match=words):
        load_any_config(COCO, opts)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ""),
        ("MODEL: {LOMAR: {DEPT: 3}}", "MODEL.LOMAR.DEPT"),
        ("MODEL: !!python/object/apply:os.getcwd []", "python/object"),
        ("_BASE_: gone.yaml", "gone.yaml"),
    ],
)
def test_files_that_are_no_yacs_configs_are_named(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"mine.yaml.*{words}"):
        load_any_config(path, [])


def test_errors_name_the_settings_of_the_yaml(drawn_set, tmp_path):
    with pytest.raises(UserError, match="data.train.annotations.*DATASETS.TRAIN_JSON_FILE"):
        detection.main(tool_args(CUSTOM, *TINY, "OUTPUT_DIR", tmp_path))
    with pytest.raises(UserError, match="square_pad=64.*MODEL.LOMAR.SQUARE_PAD"):
        run(drawn_set, tmp_path, "MODEL.LOMAR.SQUARE_PAD", 64)
    with pytest.raises(UserError, match="MODEL.WEIGHTS"):
        run(drawn_set, tmp_path, eval_only=True)
    (tmp_path / "model_0000001.pth").touch()
    with pytest.raises(UserError, match="train.output_dir.*train.overwrite.*OUTPUT_DIR.*OVERWRITE"):
        run(drawn_set, tmp_path)


def test_settings_reach_the_run():
    opts = "SOLVER.AMP.ENABLED False SOLVER.CLIP_GRADIENTS.ENABLED True SOLVER.MAX_ITER 100"
    opts += " SOLVER.CLIP_GRADIENTS.CLIP_TYPE full_model SOLVER.CLIP_GRADIENTS.CLIP_VALUE 0.5"
    opts += " SOLVER.ACCUMULATION_STEPS 4 SOLVER.EMA_DECAY 0.999 OVERWRITE True"
    opts += " MODEL.MASK_ON False TEST.DETECTIONS_PER_IMAGE 300 SOLVER.STEPS (60,90,200)"
    opts += (
        " SOLVER.COMPILE True SOLVER.MAX_SKIPPED_STEPS 3 SOLVER.MILESTONE_PERIOD 50 LOG_PERIOD 5"
    )
    opts += " SOLVER.CHECKPOINT_MAX_TO_KEEP 1 TEST.EVALUATOR hotcoco WANDB.PROJECT mine"
    cfg = load_any_config(COCO, opts.split())
    assert (cfg.train.precision, cfg.train.clip_grad_norm) == ("fp32", 0.5)
    assert (cfg.train.accumulation_steps, cfg.train.ema_decay) == (4, 0.999)
    assert (cfg.train.compile, cfg.train.max_skipped_steps, cfg.train.log_period) == (True, 3, 5)
    keep = cfg.train.checkpointer
    assert (keep.max_to_keep, keep.milestone_period, keep.best_metric) == (1, 50, "bbox/AP")
    assert (cfg.data.evaluator, cfg.train.wandb) == ("hotcoco", {"project": "mine"})
    assert cfg.train.overwrite and cfg.lr_multiplier.milestones == [0.6, 0.9]
    assert not cfg.dataloader.train.mapper.use_instance_mask
    assert cfg.dataloader.evaluator.max_dets_per_image == 300
    with torch.device("meta"):
        model = build_model(cfg)
    assert not model.roi_heads.mask_on
    assert model.roi_heads.box_predictor.test_topk_per_image == 300
