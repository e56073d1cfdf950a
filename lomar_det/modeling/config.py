"""The yacs route: default settings of the backbone."""

from detectron2.config import CfgNode


def add_lomar_config(cfg: CfgNode) -> None:
    """Adds ``cfg.MODEL.LOMAR``: ViT-B/16 as pretrained by LoMaR, on RGB with ImageNet statistics.

    Pretrained weights go in with `lomar_det.checkpoint.load_weights(model, path)`.
    """
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.MODEL.LOMAR = CfgNode(
        {
            "IMG_SIZE": 1024,
            "PATCH_SIZE": 16,
            "EMBED_DIM": 768,
            "DEPTH": 12,
            "NUM_HEADS": 12,
            "MLP_RATIO": 4.0,
            "WINDOW_SIZE": 14,
            "NUM_GLOBAL_BLOCKS": 4,
            "DROP_PATH_RATE": 0.1,
            "REL_POS": "irpe",
            "USE_ABS_POS": False,
            "PRETRAIN_IMG_SIZE": 224,
            "ATTENTION_BACKEND": "auto",
            "USE_ACT_CHECKPOINT": False,
            "OUT_FEATURE": "last_feat",
        }
    )
