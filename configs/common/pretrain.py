"""LoMaR pretraining as in the paper: ViT-B/16 at 224, 4 windows of 7x7 patches, 1600 epochs."""

from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from lomar_pretrain import LoMaR

from .models.vit import VIT_B
from .run import run

model = L(LoMaR)(
    img_size=224,
    patch_size=16,
    **VIT_B,
    mlp_ratio=4.0,
    window_size=7,
    num_windows=4,
    mask_ratio=0.8,
    norm_pix_loss=True,
    rel_pos=True,
    abs_pos=False,
    attention_backend="auto",
)

data = OmegaConf.create(
    {
        # a folder (searched recursively), a list of paths (.txt), a COCO .json file, tar shards
        # ("shards-{000..123}.tar", "shards-*.tar"), an image, or a [list, of, these]
        "path": "???",
        # where the file names of a COCO file start; null: at the file's own folder
        "image_root": None,
        # larger images count as unreadable; null: no limit
        "max_megapixels": 180,
        # unreadable images are replaced and listed in bad_images.txt; more end the run, 0: any
        "max_bad_fraction": 0.05,
        # random crops of this share of the image's area, resized to model.img_size
        "crop_scale": [0.2, 1.0],
        # the paper's supplement crops only; the released code also flips
        "flip": False,
        "num_workers": 8,
    }
)

train = OmegaConf.create(
    {
        **run,
        "output_dir": "output/pretrain",
        # weights to go on from, ours, official or timm's; empty: random weights
        "init_checkpoint": "",
        "epochs": 1600,
        "warmup_epochs": 40,
        # learning rate = base_lr * total_batch_size / 256
        "base_lr": 1.5e-4,
        "total_batch_size": 4096,
        # 256 of 224x224 with 4 windows take 18.2 GiB (docs/performance.md): a card of 24 GB
        "max_batch_per_gpu": 256,
        "betas": [0.9, 0.95],
        "weight_decay": 0.05,
        # a checkpoint every so many epochs, of which the last few stay, ...
        "checkpoint_epochs": 20,
        "max_to_keep": 3,
        # ... and one every so many epochs that is never deleted; null for none
        "milestone_epochs": 400,
        # a sheet of reconstructions every so many epochs and at the end; 0: never
        "picture_epochs": 50,
        # kNN accuracy of the features every so many epochs and at the end, to see more than a loss
        "probe": {
            # folder of class folders with labelled images; empty: no probe
            "path": "",
            "epochs": 50,
            "k": 20,
            "max_images": 2000,
            "batch_size": 64,
        },
    }
)
