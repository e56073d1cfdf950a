"""Measures speed on this machine; prints a table, and writes it as JSON or draws it on request.

python tools/benchmark.py {attention,pretrain,loader,detection} [--device cpu] [--tiny]
    [--large] [--json OUT] [--plot PNG]
"""

import argparse
import json
import os
import signal
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C at any time: no traceback
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler logs when it starts and stops

from lomar_det.benchmarks import benchmark_attention, format_rows, format_table, plot_result
from lomar_det.benchmarks.detection_speed import benchmark_detection, format_detection
from lomar_det.config.rules import check_settings, number, whole
from lomar_det.engine import pick_device, run_tool
from lomar_det.errors import UserError
from lomar_pretrain.benchmarks.large_images import LARGE_COLUMNS, benchmark_large
from lomar_pretrain.benchmarks.loader_speed import LOADER_COLUMNS, benchmark_loader
from lomar_pretrain.benchmarks.pretrain_speed import STEP_COLUMNS, benchmark_pretrain
from lomar_pretrain.figures.plots import check_format

_RULES = {"num_workers": whole(0), "images_per_second": number("[0, inf)")}


def main(args: argparse.Namespace) -> None:
    # Refuses wrong options before the measurements.
    check_settings(vars(args), _RULES)
    device = pick_device(args.device, "--device")
    if args.plot:
        check_format("--plot", args.plot)
        if args.json and args.json.resolve() == args.plot.resolve():
            raise UserError(f"--json and --plot are both {args.plot}: name two files")
    for option in ("json", "plot"):
        _check_writable(option, getattr(args, option))
    if args.what == "attention":
        result = benchmark_attention(device, args.tiny)
        print(format_table(result))
    elif args.what == "pretrain":
        result = benchmark_pretrain(device, args.tiny)
        print(format_rows(result, STEP_COLUMNS))
    elif args.what == "loader" and args.large:
        result = benchmark_large(args.num_workers, args.tiny)
        print(format_rows(result, LARGE_COLUMNS))
    elif args.what == "loader":
        result = benchmark_loader(args.num_workers, args.images_per_second, args.tiny)
        print(format_rows(result, LOADER_COLUMNS))
    else:
        result = benchmark_detection(device, args.tiny)
        print(format_detection(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if args.plot:
        plot_result(result, args.plot)


def _check_writable(option: str, path: Path | None) -> None:
    if path is None:
        return
    try:
        is_new = not path.exists()
        path.open("a").close()
        if is_new:  # an empty file would look like a result
            path.unlink()
    except OSError as error:
        raise UserError(
            f"--{option} {path} cannot be written: {error}; name a file in a folder that is there"
        ) from None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["attention", "pretrain", "loader", "detection"])
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu")
    parser.add_argument("--tiny", action="store_true", help="small cases, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the table as JSON")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="also draw the table as bars")
    parser.add_argument(
        "--large", action="store_true", help="loader: images that do not fit into memory"
    )
    parser.add_argument("--num-workers", type=int, default=2, help="loader: number of processes")
    parser.add_argument(
        "--images-per-second",
        type=float,
        default=0,
        metavar="N",
        help="loader: images that training takes, to tell how many cores keep it busy",
    )
    parser.set_defaults(num_gpus=1, num_machines=1)  # run_tool: in this process
    run_tool(main, parser.parse_args())
