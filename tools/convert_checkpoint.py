"""Converts a checkpoint: official LoMaR, MAE, timm, detectron2's ViTDet, our own, in either format.

python tools/convert_checkpoint.py IN OUT [--to backbone|detectron2|lomar|mae|timm|same] \
    [--dtype fp16|bf16|fp32] [--num-heads N] [--patch-size P] [--ema] [--force]

OUT ends in .pth or .safetensors. By default it is a backbone file, as pretraining writes it.
"""

import argparse
import sys

from lomar_det.checkpoint.convert import DTYPES, LAYOUTS, convert_checkpoint
from lomar_det.engine.launch import report_error
from lomar_det.errors import UserError

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="IN", help=".pth, .safetensors or .pkl")
    parser.add_argument("target", metavar="OUT", help=".pth or .safetensors")
    parser.add_argument(
        "--to",
        dest="layout",
        choices=LAYOUTS,
        default="backbone",
        help="layout of OUT; same: all tensors of the model as they are, without optimizer",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: as in IN")
    parser.add_argument("--num-heads", type=int, help="of the encoder, where IN does not say")
    parser.add_argument("--patch-size", type=int, help="resize the patch embedding's kernels to it")
    parser.add_argument("--ema", action="store_true", help="the averaged weights in IN")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    try:
        print(convert_checkpoint(**vars(parser.parse_args())))
    except UserError as error:
        sys.exit(report_error(error))
