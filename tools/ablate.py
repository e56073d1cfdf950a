"""Compares ways to pretrain: a grid of pretraining and downstream runs, as a table and a plot.

python tools/ablate.py --config-file configs/ablation/X.py [--num-gpus N] key=value ...

A config says which settings it needs, such as pretrain.data=IMAGES downstream.data=FOLDER. The same
command again continues where it stopped. downstream.metric chooses one or several of the recorded
results for table and plot, also after all runs are done: downstream.metric=[bbox/AP,segm/AP].
"""

import argparse
import signal
import sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the long imports: no traceback

from lomar_det.engine import add_config_arguments, run_tool

# The project is not a package: its files import each other by their file names.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "projects" / "ablation"))

from grid import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine")
    parser.set_defaults(machine_rank=0, dist_url="auto")
    run_tool(main, parser.parse_intermixed_args())
