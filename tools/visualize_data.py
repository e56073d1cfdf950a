"""Draws what a training run looks at: augmented samples with boxes, masks and names of classes.

python tools/visualize_data.py --config-file configs/custom/X.py [--num N] [--output OUT] \
    data.train.annotations=... key=value ...

With a config of configs/pretrain, it draws crops and their windows.
"""

import argparse

from lomar_det.data.visualize import visualize_detection_data
from lomar_det.engine import run_tool
from lomar_det.engine.config import load_config
from lomar_pretrain.visualize import visualize_pretraining_data


def main(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    if "dataloader" in cfg:
        paths = visualize_detection_data(cfg, args.output, args.num, args.annotations_only)
    else:
        paths = visualize_pretraining_data(cfg, args.output, args.num)
    print(*paths, sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a LazyConfig (.py)")
    parser.add_argument("--output", default="output/visualize_data", metavar="OUT")
    parser.add_argument("--num", type=int, default=8, help="how many samples")
    parser.add_argument(
        "--annotations-only", action="store_true", help="whole pictures, without augmentation"
    )
    parser.add_argument("opts", nargs="*", metavar="key=value", help="override config settings")
    parser.set_defaults(num_gpus=1, num_machines=1)
    run_tool(main, parser.parse_intermixed_args())
