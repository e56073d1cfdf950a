"""Trains and evaluates a detector.

python tools/train_net.py --config-file configs/coco/X.py [--num-gpus N] [--resume] key=value ...
python tools/train_net.py --config-file configs/coco/X.py --eval-only train.init_checkpoint=FILE
python tools/train_net.py --config-file configs/coco/X.yaml MODEL.WEIGHTS FILE KEY VALUE ...
"""

import argparse
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the long imports: no traceback

from lomar_det.detection.train import main
from lomar_det.engine import add_run_arguments, run_tool

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_run_arguments(parser)
    parser.add_argument("--eval-only", action="store_true", help="evaluate train.init_checkpoint")
    run_tool(main, parser.parse_intermixed_args())
