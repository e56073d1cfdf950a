"""Exports a trained detector or its backbone, and checks that the file computes the same.

python tools/export_model.py --config-file FILE --format onnx --output FOLDER \
    train.init_checkpoint=FILE key=value ...
"""

import argparse

from lomar_det.engine import add_config_arguments, run_tool
from lomar_det.export import FORMATS, main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--format",
        required=True,
        choices=list(FORMATS),
        help="torch_export, onnx: backbone and pyramid; the others: the whole detector",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where to write")
    parser.add_argument(
        "--input-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="export for this size and one image at a time; by default for all",
    )
    run_tool(main, parser.parse_intermixed_args())
