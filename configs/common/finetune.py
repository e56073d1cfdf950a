"""Fine-tuning for classification as in the paper: ViT-B/16 at 224, 100 epochs, batch 1024.

Where the paper is silent the settings are MAE's: layer decay, stochastic depth, cutmix, label
smoothing, RandAugment, random erasing.
"""

from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from lomar_pretrain import VisionTransformerClassifier

from .models.vit import VIT_B
from .run import run

model = L(VisionTransformerClassifier)(
    img_size=224,
    patch_size=16,
    **VIT_B,
    mlp_ratio=4.0,
    # the class folders decide
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
        # share of each class that is kept for validation where there is no val/
        "val_fraction": 0.2,
        # unreadable images are listed in bad_images.txt; training replaces them, validation
        # leaves them out; more in either end the run, 0: any
        "max_bad_fraction": 0.05,
        "num_workers": 8,
        # as timm names them; null switches one off
        "augmentation": {
            "scale": [0.08, 1.0],
            "hflip": 0.5,
            "color_jitter": None,
            "auto_augment": "rand-m9-mstd0.5-inc1",
            "re_prob": 0.25,
        },
        # validation sees the middle of the image, this share of its shorter side
        "crop_pct": 0.875,
    }
)

train = OmegaConf.create(
    {
        **run,
        "output_dir": "output/finetune",
        # a pretrained encoder, or a classifier of the same classes; empty: random weights
        "init_checkpoint": "",
        "epochs": 100,
        "warmup_epochs": 5,
        # learning rate = base_lr * total_batch_size / 256
        "base_lr": 1e-3,
        "total_batch_size": 1024,
        "max_batch_per_gpu": 128,
        # any of timm's; betas are those of the adam family
        "optimizer": "adamw",
        "betas": [0.9, 0.999],
        "weight_decay": 0.05,
        # learning rate of a block over that of the next one; null: the same for all
        "layer_decay": 0.65,
        "mixup": 0.8,
        "cutmix": 1.0,
        "label_smoothing": 0.1,
        # set, nothing is trained: accuracy by this many nearest training images
        "knn": None,
        "eval_epochs": 1,
        # a checkpoint every so many epochs, of which the last few stay; milestones stay for ever
        "checkpoint_epochs": 5,
        "max_to_keep": 1,
        "milestone_epochs": None,
        # model_best.pth holds the weights with the highest; null for none
        "best_metric": "classification/top1",
    }
)
