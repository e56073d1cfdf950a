"""Measures speed on this machine.

python tools/benchmark.py attention [--device cpu] [--tiny] [--json OUT]
"""

import argparse
import json
import signal
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C at any time: no traceback

from lomar_det.benchmarks import benchmark_attention, format_table
from lomar_det.engine import pick_device, run_tool
from lomar_det.errors import UserError


def main(args: argparse.Namespace) -> None:
    if args.json:
        try:
            args.json.open("a").close()  # now, not after the measurements
        except OSError as error:
            raise UserError(f"--json {args.json} cannot be written: {error}") from None
    result = benchmark_attention(pick_device(args.device), args.tiny)
    print(format_table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["attention"])
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu")
    parser.add_argument("--tiny", action="store_true", help="one small case")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures there")
    parser.set_defaults(num_gpus=1, num_machines=1)  # run_tool: in this process
    run_tool(main, parser.parse_args())
