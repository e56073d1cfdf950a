"""Image classification with a pretrained encoder: fine-tuning, linear probe, kNN.

python tools/finetune.py --config-file configs/imagenet/X.py [--num-gpus N] [--resume] [--eval-only] \
    data.path=FOLDER train.init_checkpoint=FILE key=value ...
"""

import argparse

from lomar_det.engine import add_run_arguments, run_tool
from lomar_pretrain.finetune import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_run_arguments(parser)
    parser.add_argument("--eval-only", action="store_true", help="accuracy of init_checkpoint")
    run_tool(main, parser.parse_intermixed_args())
