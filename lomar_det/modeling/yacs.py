"""The default settings of yaml configs: of the backbone, of ViTDet's recipe, of training."""

from detectron2.config import CfgNode

from ..config.settings import DetectionData, DetectionSettings


def add_lomar_config(cfg: CfgNode) -> None:
    """Adds what LoMaR-Det's backbones and training need to detectron2's default settings.

    ``cfg.MODEL.LOMAR`` is ViT-B/16 as pretrained by LoMaR, on RGB images with ImageNet statistics.
    Its keys are arguments of `LoMaRViT`. ``MODEL.BACKBONE.FREEZE_AT`` is ``freeze_at``, 0 instead
    of detectron2's 2. The other settings are for `tools/train_net.py`. In a training loop of your
    own, load weights by `lomar_det.checkpoint.load_weights(model, path)`.
    """
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.LOMAR = CfgNode(
        {
            "IMG_SIZE": 1024,
            "PATCH_SIZE": 16,
            "EMBED_DIM": 768,
            "DEPTH": 12,
            "NUM_HEADS": 12,
            "MLP_RATIO": 4.0,
            "WINDOW_SIZE": 14,
            # evenly spaced; the other blocks attend in windows
            "NUM_GLOBAL_BLOCKS": 4,
            "DROP_PATH_RATE": 0.1,
            # irpe, decomposed (detectron2's ViTDet) or none
            "REL_POS": "irpe",
            "USE_ABS_POS": False,
            "PRETRAIN_IMG_SIZE": 224,
            "ATTENTION_BACKEND": "auto",
            "USE_ACT_CHECKPOINT": False,
            "OUT_FEATURE": "last_feat",
            # 0 pads a batch to its largest image, 1024 pads every image to 1024x1024
            "SQUARE_PAD": 0,
        }
    )
    cfg.INPUT.FORMAT = "RGB"

    # COCO-format data of the user's own, as in register_coco_instances. DATASETS.TRAIN and TEST are
    # then empty; classes, masks and detections per image follow from the files.
    cfg.DATASETS.TRAIN_JSON_FILE = ""
    cfg.DATASETS.TRAIN_IMAGE_ROOT = ""
    cfg.DATASETS.TEST_JSON_FILE = ""
    cfg.DATASETS.TEST_IMAGE_ROOT = ""

    # AdamW with layer-wise learning rate decay.
    cfg.SOLVER.LR_DECAY_RATE = 0.7
    cfg.SOLVER.WEIGHT_DECAY = 0.1
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.WARMUP_ITERS = 250
    cfg.SOLVER.AMP.ENABLED = True
    cfg.SEED = 0
    # Weights & Biases, if a project is named
    cfg.WANDB = CfgNode({"PROJECT": "", "NAME": ""})
    _add_sections(cfg)
    # null means "auto": a yacs key that holds a word cannot be set to a number.
    cfg.SOLVER.ACCUMULATION_STEPS = None


def _add_sections(cfg: CfgNode) -> None:
    """Adds the settings whose fields name a yacs key; keys of detectron2 keep its defaults."""
    for section in (DetectionSettings, DetectionData):
        for _, field in section.walk(""):
            key = field.metadata["yacs"]
            if key is None:
                continue
            node, *keys = cfg, *key.split(".")
            for part in keys[:-1]:
                node = node[part]
            if keys[-1] not in node:
                node[keys[-1]] = field.default_factory()
