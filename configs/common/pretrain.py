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
        # a folder of pictures, searched recursively, or a list of folders
        "path": "???",
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
        # averaged weights (0.9999, say), which backbone_final.pth then holds; null for none
        "ema_decay": None,
        # so many steps in a row with a non-finite loss or gradient are left out, then the run ends
        "max_skipped_steps": 10,
        # auto: the GPU if there is one; cuda, cpu
        "device": "auto",
        # auto: bf16 on a GPU that has it, else fp32
        "precision": "auto",
        "seed": 0,
        # a checkpoint every so many epochs, of which the last few stay, ...
        "checkpoint_epochs": 20,
        "max_to_keep": 3,
        # ... and one every so many epochs that is never deleted; null for none
        "milestone_epochs": 400,
        # delete another run's checkpoints in output_dir instead of refusing to start
        "overwrite": False,
        "log_period": 20,
        # Weights & Biases: {project: ..., name: ...}, arguments of wandb.init; null for none
        "wandb": None,
        "ddp": {"broadcast_buffers": False, "find_unused_parameters": False},
    }
)
