"""Parameters, FLOPs and activations of a config's model, exactly and in seconds.

python tools/analyze_model.py --config-file FILE [--input-size HEIGHT WIDTH] key=value ...
"""

import argparse

from lomar_det.benchmarks.cost import main
from lomar_det.engine import add_config_arguments, run_tool

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--input-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="by default training's"
    )
    run_tool(main, parser.parse_intermixed_args())
