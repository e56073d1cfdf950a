"""Image classification with a pretrained encoder: fine-tuning or a linear probe.

python tools/finetune.py --config-file configs/imagenet/X.py [--num-gpus N] [--resume] \
    data.path=FOLDER train.init_checkpoint=FILE key=value ...
python tools/finetune.py --config-file configs/imagenet/X.py --eval-only data.path=FOLDER \
    train.init_checkpoint=FILE
"""

import argparse
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the long imports: no traceback

from lomar_det.engine import add_run_arguments, run_tool
from lomar_pretrain.runs.finetune import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_run_arguments(parser)
    parser.add_argument("--eval-only", action="store_true", help="accuracy of init_checkpoint")
    run_tool(main, parser.parse_intermixed_args())
