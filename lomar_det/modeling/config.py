"""The yacs route: default settings of the backbone."""

from detectron2.config import CfgNode


def add_lomar_config(cfg: CfgNode) -> None:
    """Adds ``cfg.MODEL.LOMAR``: ViT-B/16 as pretrained by LoMaR."""
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
