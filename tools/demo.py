"""Detects the objects in images; writes them as JSON, and draws boxes, masks and labels.

python tools/demo.py --config-file FILE --input IMAGES --output FOLDER \
    train.init_checkpoint=FILE key=value ...
"""

import argparse
import os
import sys

from lomar_det.detection.demo import main
from lomar_det.detection.formats import FORMATS
from lomar_det.engine import add_config_arguments, run_tool

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--input", required=True, nargs="+", help="images, folders (recursive) or glob patterns"
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where to write")
    parser.add_argument("--confidence-threshold", type=float, default=0.5, metavar="SCORE")
    parser.add_argument("--max-detections", type=int, metavar="N", help="keep the best N per image")
    parser.add_argument("--no-pictures", action="store_true", help="draw nothing")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=["results"],
        help="results: instances.json, COCO results (default); coco: detections.json, a COCO data "
        "set for label tools; geojson: a file for each image, for QGIS and QuPath",
    )
    parser.add_argument(
        "--tile-size",
        type=int,
        default=0,
        metavar="PIXELS",
        help="cut larger images into tiles, as for a detector trained on tiles",
    )
    parser.add_argument(
        "--tile-overlap",
        type=int,
        metavar="PIXELS",
        help="pixels that neighbouring tiles share; should exceed the size of an object (default: "
        "a quarter of the tile)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="tiles in a forward pass"
    )
    parser.add_argument(
        "--classes", metavar="FILE", help="class names, one per line, or COCO annotations (.json)"
    )
    args = parser.parse_intermixed_args()
    # --input also takes the overrides that follow it.
    settings = [item for item in args.input if "=" in item and not os.path.exists(item)]
    args.input = [item for item in args.input if item not in settings]
    args.opts += settings

    def run(args: argparse.Namespace) -> None:
        if main(args):
            sys.exit(1)

    run_tool(run, args)
