"""What every benchmark needs: clocks, the machine, the ceiling, a table."""

import platform
import statistics
import time
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch import nn

REPEATS = 20
CEILING_SIDE = 8192  # of the square matrices whose product gives the machine's ceiling


def describe_machine(device: torch.device) -> dict[str, str]:
    """Device, versions and date, without which a figure means nothing."""
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else platform.processor() or "CPU"
    threads = "" if cuda else f", {torch.get_num_threads()} threads"
    return {
        "device": name + threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def time_work(
    work: Callable[[], None], device: torch.device, repeats: int = REPEATS
) -> list[float]:
    """Milliseconds of each of several runs, by device events on CUDA and by the clock elsewhere.

    On CUDA the queue stays full, so that launches overlap with the work.
    """
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append((time.perf_counter() - start) * 1e3)
        return times
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        start.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def summarise(times: list[float]) -> dict:
    """Median and quartiles of milliseconds, as ``ms`` and ``spread``."""
    quarters = statistics.quantiles(times, n=4)
    return {"ms": statistics.median(times), "spread": [quarters[0], quarters[2]]}


def measure_step(
    step: Callable[[], None], device: torch.device, repeats: int = REPEATS, warmup: int = 3
) -> dict:
    """Times a training or inference step.

    Returns:
        ``first_s`` (the first call, compilation included), ``ms``, ``spread`` and, on CUDA,
        ``peak_gib`` of device memory.
    """
    cuda = device.type == "cuda"
    start = time.perf_counter()
    step()
    if cuda:
        torch.cuda.synchronize()
    first = time.perf_counter() - start
    for _ in range(warmup - 1):
        step()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    row = {"first_s": first, **summarise(time_work(step, device, repeats))}
    if cuda:
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def saved_megabytes(step: Callable[[], None], model: nn.Module) -> float:
    """What a step keeps for its backward pass, weights not counted: MB, on any device."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:  # views of one tensor share its storage
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(sizes.values()) / 1e6


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int = CEILING_SIDE) -> float:
    """TFLOP/s of a large square matrix product: the ceiling against which steps are held."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def product() -> None:
        a @ b

    product()
    return 2 * side**3 / statistics.median(time_work(product, device)) / 1e9


def format_rows(result: dict, columns: dict[str, str]) -> str:
    """The result as aligned text.

    Args:
        result: ``machine`` and ``rows``.
        columns: See `align`.
    """
    machine = "  ".join(f"{key}: {value}" for key, value in result["machine"].items())
    return f"{machine}\n{align(result['rows'], columns)}"


def align(rows: list[dict], columns: dict[str, str]) -> str:
    """Rows as aligned text below the titles of their columns; without columns that are empty.

    Args:
        rows: Values by column: text, a number, a list of numbers (a range), or none.
        columns: Key of a row to the format of its value; the key is the title.
    """
    columns = {key: form for key, form in columns.items() if any(key in row for row in rows)}
    table = [[_cell(row.get(key), form) for key, form in columns.items()] for row in rows]
    sides = ["left", *["right"] * (len(columns) - 1)]
    return tabulate(table, list(columns), "plain", disable_numparse=True, colalign=sides)


def _cell(value, form: str) -> str:
    if isinstance(value, list):
        return " to ".join(format(number, form) for number in value)
    return "-" if value is None else format(value, form)
