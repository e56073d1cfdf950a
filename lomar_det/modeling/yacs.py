"""The yacs route: default settings of the backbone and of ViTDet's recipe."""

from detectron2.config import CfgNode


def add_lomar_config(cfg: CfgNode) -> None:
    """Adds what LoMaR-Det's backbones and training need to detectron2's default settings.

    ``cfg.MODEL.LOMAR`` is ViT-B/16 as pretrained by LoMaR, on RGB images with ImageNet
    statistics; its names are the arguments of `LoMaRViT`. ``MODEL.BACKBONE.FREEZE_AT`` is its
    ``freeze_at``, 0 instead of detectron2's 2. What follows belongs to `tools/train_net.py`; in a
    training loop of your own, load weights by `lomar_det.checkpoint.load_weights(model, path)`.
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

    # Large-scale jitter, under the names that Mask2Former gave it.
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0

    # COCO-format data of one's own, as in register_coco_instances; DATASETS.TRAIN and TEST are
    # empty then, and classes, masks and detections per image follow from the files.
    cfg.DATASETS.TRAIN_JSON_FILE = ""
    cfg.DATASETS.TRAIN_IMAGE_ROOT = ""
    cfg.DATASETS.TEST_JSON_FILE = ""
    cfg.DATASETS.TEST_IMAGE_ROOT = ""

    # AdamW with layer-wise learning rate decay.
    cfg.SOLVER.LR_DECAY_RATE = 0.7
    cfg.SOLVER.WEIGHT_DECAY = 0.1
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.WARMUP_ITERS = 250
    # IMS_PER_BATCH is split into this many forward passes; None: as few as evenly divide it with at
    # most MAX_IMS_PER_GPU images at a time
    cfg.SOLVER.ACCUMULATION_STEPS = None
    cfg.SOLVER.MAX_IMS_PER_GPU = 4
    # weights averaged with this decay (0.9999, say) are then evaluated; None for none
    cfg.SOLVER.EMA_DECAY = None
    cfg.SOLVER.AMP.ENABLED = True
    # with AMP enabled: bf16, fp16 or auto, which is bf16 on a GPU that has it and fp32 elsewhere
    cfg.SOLVER.AMP.PRECISION = "auto"
    # torch.compile for the transformer blocks
    cfg.SOLVER.COMPILE = False
    # so many steps in a row with a non-finite loss or gradient are left out, then the run ends
    cfg.SOLVER.MAX_SKIPPED_STEPS = 10
    # of the checkpoints of CHECKPOINT_PERIOD, the last few stay; None: all
    cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP = 3
    # iterations between checkpoints that are never deleted; None for none
    cfg.SOLVER.MILESTONE_PERIOD = None
    cfg.SEED = 0
    # model_best.pth holds the weights with the highest
    cfg.TEST.BEST_METRIC = "bbox/AP"
    # pycocotools or hotcoco, which is faster
    cfg.TEST.EVALUATOR = "pycocotools"
    # iterations between lines of the log
    cfg.LOG_PERIOD = 20
    # Weights & Biases, where a project is named
    cfg.WANDB = CfgNode({"PROJECT": "", "NAME": ""})
    # delete another run's checkpoints in OUTPUT_DIR instead of refusing to start
    cfg.OVERWRITE = False
