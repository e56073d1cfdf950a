"""`detection_tiny.py` for small objects, such as the nuclei of cells in images of 256x256.

Images are enlarged to about 512 pixels: training sees crops of 256, evaluation the whole.
"""

from .detection_tiny import budget, cells, downstream, pretrain, run

EVALUATION = "dataloader.test.mapper.augmentations.0"
downstream.overrides += [
    # half of detection_tiny's rate, with which training from pretrained weights failed at times
    "optimizer.lr=2.5e-4",
    "data.min_scale=1.6",
    "data.max_scale=2.4",
    f"{EVALUATION}.short_edge_length=512",
    f"{EVALUATION}.max_size=512",
]
run.output_dir = "output/ablation/detection_zoomed_tiny"
