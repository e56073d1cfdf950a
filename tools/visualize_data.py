"""Draws what a detector is trained on: augmented samples with boxes, masks and class names.

python tools/visualize_data.py --config-file configs/custom/X.py [--num N] [--output OUT] \
    data.train.annotations=... key=value ...

With a config of configs/pretrain, it draws crops and their windows.
"""

import argparse
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the long imports: no traceback

from lomar_det.config.lazy import require_sections
from lomar_det.config.rules import check_settings, whole
from lomar_det.detection.show_data import visualize_detection_data
from lomar_det.detection.yaml_route import load_any_config
from lomar_det.engine import add_config_arguments, run_tool
from lomar_pretrain.runs.show_data import visualize_pretraining_data


def main(args: argparse.Namespace) -> None:
    cfg = load_any_config(args.config_file, args.opts)
    check_settings(vars(args), {"num": whole(1)})
    if "dataloader" in cfg:
        paths = visualize_detection_data(cfg, args.output, args.num, args.annotations_only)
    else:
        require_sections(cfg, args.config_file, "pretrain", "data.crop_scale")
        paths = visualize_pretraining_data(cfg, args.output, args.num)
    print(*paths, sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument("--output", default="output/visualize_data", metavar="OUT")
    parser.add_argument("--num", type=int, default=8, help="how many samples")
    parser.add_argument(
        "--annotations-only", action="store_true", help="whole images, without augmentation"
    )
    run_tool(main, parser.parse_intermixed_args())
