"""Pretrains a ViT on unlabelled images with LoMaR.

python tools/pretrain.py --config-file configs/pretrain/X.py [--num-gpus N] [--resume] \
    data.path=FOLDER key=value ...
"""

import argparse
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the long imports: no traceback

from lomar_det.engine import add_run_arguments, run_tool
from lomar_pretrain.runs.pretrain import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_run_arguments(parser)
    run_tool(main, parser.parse_intermixed_args())
