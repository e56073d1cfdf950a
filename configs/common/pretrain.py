"""LoMaR pretraining as in the paper: ViT-B/16 at 224, 4 windows of 7x7 patches, 1600 epochs."""

from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from lomar_pretrain import LoMaR

model = L(LoMaR)(
    img_size=224,
    patch_size=16,
    embed_dim=768,
    depth=12,
    num_heads=12,
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
        # ("shards-{000..123}.tar", "shards-*.tar"), a picture, or a [list, of, these]
        "path": "???",
        # where the file names of a COCO file start; null: at the file's own folder
        "image_root": None,
        # larger pictures count as unreadable; null: no limit
        "max_megapixels": 180,
        # unreadable pictures are replaced and listed in bad_images.txt; more end the run, 0: any
        "max_bad_fraction": 0.05,
        # random crops of this share of the picture's area, resized to model.img_size
        "crop_scale": [0.2, 1.0],
        # the paper's supplement crops only; the released code also flips
        "flip": False,
        "num_workers": 8,
    }
)

train = OmegaConf.create(
    {
        "output_dir": "output/pretrain",
        "epochs": 1600,
        "warmup_epochs": 40,
        # learning rate = base_lr * total_batch_size / 256
        "base_lr": 1.5e-4,
        "total_batch_size": 4096,
        # total_batch_size is split into this many forward passes
        "accumulation_steps": 1,
        "betas": [0.9, 0.95],
        "weight_decay": 0.05,
        "clip_grad_norm": None,
        # auto: the GPU if there is one; cuda, cpu
        "device": "auto",
        # auto: bf16 on a GPU that has it, else fp32
        "precision": "auto",
        "seed": 0,
        "checkpoint_epochs": 20,
        "max_to_keep": 3,
        "log_period": 20,
        "ddp": {"broadcast_buffers": False, "find_unused_parameters": False},
    }
)
