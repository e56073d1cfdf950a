"""Draws what a LoMaR or MAE checkpoint reconstructs of any images.

python tools/visualize_reconstruction.py --checkpoint output/pretrain/X/model_final.pth \
    --input IMAGES --output OUT

Each image is one row. LoMaR: the image with its windows, then one window (original, masked,
reconstructed), then all windows in place. MAE: original, masked, reconstructed, and reconstructed
with the visible patches.
"""

import argparse

from lomar_det.engine import run_tool
from lomar_pretrain.figures.sheet import visualize


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="model_*.pth of a run, or an official LoMaR/MAE file")
    add("--input", required=True, nargs="+", help="images: files, folders, patterns")
    add("--output", required=True, help="drawing to write (.png, .pdf, ...), or a folder")
    add("--num-images", type=int, default=8, help="at most this many, spread over the input (8)")
    add("--num-windows", type=int, help="LoMaR: windows on each image (the model's own)")
    add("--mask-ratio", type=float, help="share of masked patches (the model's own)")
    add("--seed", type=int, default=0, help="picks windows and masks (0)")
    add("--config-file", metavar="FILE", help="config of the run, if the checkpoint needs it")
    add("--raw-pixels", action="store_true", help="the targets were not normalised per patch")
    add("--device", default="auto", help="auto, cuda or cpu")
    parser.set_defaults(num_gpus=1, num_machines=1)  # one process
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(visualize, parse_args())
