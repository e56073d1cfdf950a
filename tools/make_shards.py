"""Packs images into WebDataset tar shards, for data sets with too many files for a file system.

python tools/make_shards.py --input FOLDER --output SHARDS [--shortest-side 512]
"""

import argparse
import os

from lomar_det.data.images import MAX_MEGAPIXELS
from lomar_det.engine import run_tool
from lomar_pretrain.data.shard_writer import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", nargs="+", required=True, help="sources, as for data.path")
    parser.add_argument("--output", required=True, metavar="FOLDER")
    parser.add_argument("--image-root", help="folder that file names in a COCO .json start from")
    parser.add_argument("--shortest-side", type=int, metavar="PIXELS", help="shrink larger ones")
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality of shrunk images")
    parser.add_argument("--shard-mb", type=float, default=500, help="megabytes in a shard")
    parser.add_argument("--max-megapixels", type=float, default=MAX_MEGAPIXELS)
    parser.add_argument("--num-workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--force", action="store_true", help="replace shards that are there")
    parser.set_defaults(num_gpus=1, num_machines=1)  # run_tool: in this process
    run_tool(main, parser.parse_args())
