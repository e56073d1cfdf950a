"""Fine-tuning for classification as in the paper: ViT-B/16 at 224, 100 epochs, batch 1024.

Where the paper is silent the settings are MAE's: layer decay, stochastic depth, cutmix, label
smoothing, RandAugment, random erasing.
"""

from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from lomar_pretrain import VisionTransformerClassifier

model = L(VisionTransformerClassifier)(
    img_size=224,
    patch_size=16,
    embed_dim=768,
    depth=12,
    num_heads=12,
    mlp_ratio=4.0,
    # set from the class folders
    num_classes=1000,
    drop_path_rate=0.1,
    rel_pos=True,
    abs_pos=False,
    attention_backend="auto",
)

data = OmegaConf.create(
    {
        # a folder with train/CLASS/ and val/CLASS/, or one of class folders, which is then split
        "path": "???",
        # share of each class that is kept for validation where the folder has no val/
        "val_fraction": 0.2,
        "num_workers": 8,
        # timm's names; auto_augment and re_prob (random erasing) may be null
        "augmentation": {
            "scale": [0.08, 1.0],
            "hflip": 0.5,
            "color_jitter": None,
            "auto_augment": "rand-m9-mstd0.5-inc1",
            "re_prob": 0.25,
        },
        # the middle of this share of the shorter side is what validation sees
        "crop_pct": 0.875,
    }
)

train = OmegaConf.create(
    {
        "output_dir": "output/finetune",
        # finetune: all weights; linear: a linear layer on frozen features; knn: no training
        "mode": "finetune",
        # a pretrained encoder or a classifier; empty trains from random weights
        "init_checkpoint": "",
        "epochs": 100,
        "warmup_epochs": 5,
        # learning rate = base_lr * total_batch_size / 256
        "base_lr": 1e-3,
        "total_batch_size": 1024,
        # total_batch_size is split into this many forward passes
        "accumulation_steps": 1,
        "optimizer": "adamw",
        "betas": [0.9, 0.999],
        "weight_decay": 0.05,
        # learning rate of a block over that of the next one
        "layer_decay": 0.65,
        "clip_grad_norm": None,
        "mixup": 0.8,
        "cutmix": 1.0,
        "label_smoothing": 0.1,
        # of mode=knn
        "knn": {"k": 20, "temperature": 0.07},
        # auto: the GPU if there is one; cuda, cpu
        "device": "auto",
        # auto: bf16 on a GPU that has it, else fp32
        "precision": "auto",
        "seed": 0,
        "eval_epochs": 1,
        "checkpoint_epochs": 5,
        "max_to_keep": 1,
        "log_period": 20,
        "ddp": {"broadcast_buffers": True, "find_unused_parameters": False},
    }
)
