"""Timing iRPE attention against attention without any position encoding.

Shapes: B batch (or windows), h heads, N tokens, D head_dim.
"""

import statistics
from collections.abc import Callable
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..layers import NUM_BUCKETS, NUM_SPATIAL_BUCKETS, TokenGrid, rpe_attention
from ..layers.irpe.dispatch import pick_backend
from .timing import describe_machine, summarise, time_work

# name -> (B, h, D, grid): a ViT-B detector's global and window attention, pretraining's windows
CASES = {
    "64x64, batch 2": (2, 12, 64, TokenGrid(64, 64)),
    "14x14, 50 windows": (50, 12, 64, TokenGrid(14, 14)),
    "7x7 and class token, 1024 windows": (1024, 12, 64, TokenGrid(7, 7, True)),
    "14x14 and class token, batch 128": (128, 12, 64, TokenGrid(14, 14, True)),
    "50x84, batch 2": (2, 12, 64, TokenGrid(50, 84)),
}
TINY_CASES = {"7x7 and class token, 4 windows": (4, 2, 32, TokenGrid(7, 7, True))}
NO_BIAS = {
    "flash, no bias": SDPBackend.FLASH_ATTENTION,
    "cuDNN, no bias": SDPBackend.CUDNN_ATTENTION,
}


def benchmark_attention(device: torch.device, tiny: bool = False) -> dict:
    """Times every backend that serves, on every case, forward and forward + backward.

    Args:
        device: On CUDA, bf16 by device events, eager and as CUDA-graph replay, next to SDPA without
            bias; on a CPU, fp32 by the clock.
        tiny: One small case, to see that it runs.

    Returns:
        ``machine`` and ``rows``: case, backend, median milliseconds (``forward``, ``both``, and on
        CUDA ``graph_forward``, ``graph_both``, None where a graph cannot be captured), ``spread``
        of ``both`` (its quartiles) and ``peak_gib``.
    """
    rows = []
    for case, shape in (TINY_CASES if tiny else CASES).items():
        for backend, attend, inputs, gradient in _contestants(shape, device):
            row = {"case": case, "backend": backend}
            rows.append(row | _measure(attend, inputs, gradient, device))
    return {"machine": describe_machine(device), "rows": rows}


def _contestants(shape, device: torch.device):
    B, h, D, grid = shape
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    torch.manual_seed(0)
    qkv = torch.randn(B, grid.num_tokens, 3, h, D, device=device).to(dtype)
    q, k, v = (t.detach().requires_grad_() for t in qkv.permute(2, 0, 3, 1, 4).unbind(0))
    num_buckets = NUM_BUCKETS if grid.cls_token else NUM_SPATIAL_BUCKETS
    table = (torch.randn(D, num_buckets, device=device) * D**-0.5).requires_grad_()
    gradient = torch.randn(B, grid.num_tokens, h, D, device=device).to(dtype).transpose(1, 2)
    for name, kernel in NO_BIAS.items() if cuda else ():

        def without_bias(kernel=kernel) -> Tensor:
            with sdpa_kernel(kernel):
                return F.scaled_dot_product_attention(q, k, v)

        yield name, without_bias, (q, k, v), gradient
    for backend in ("fused", "matmul", "eager") if cuda else ("matmul", "eager"):
        if pick_backend(q, grid, backend) != backend:
            continue  # it does not serve here, and another would be timed in its place

        def with_irpe(backend=backend) -> Tensor:
            return rpe_attention(q, k, v, table, grid, backend)

        yield backend, with_irpe, (q, k, v, table), gradient


def _measure(attend: Callable[[], Tensor], inputs, gradient: Tensor, device) -> dict:
    def forward() -> None:
        with torch.no_grad():
            attend()

    def both() -> None:
        torch.autograd.grad(attend(), inputs, gradient)

    forward(), both()  # compile
    if device.type != "cuda":
        times = time_work(both, device)
        return {"forward": statistics.median(time_work(forward, device)), **_summary(times)}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    both()
    torch.cuda.synchronize()
    row = {"peak_gib": torch.cuda.max_memory_allocated() / 2**30}
    row |= {
        "forward": statistics.median(time_work(forward, device)),
        **_summary(time_work(both, device)),
    }
    for name, work in (("graph_forward", forward), ("graph_both", both)):
        with _captured(work) as replay:
            row[name] = replay and statistics.median(time_work(replay, device))
    return row


def _summary(times: list[float]) -> dict:
    summary = summarise(times)
    return {"both": summary["ms"], "spread": summary["spread"]}


@contextmanager
def _captured(work: Callable[[], None]):
    """Yields the replay of ``work`` as a CUDA graph, or None if it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            work()
        graph.replay()
    except RuntimeError:
        torch.cuda.synchronize()
        yield None
        return
    yield graph.replay


def format_table(result: dict) -> str:
    """The result as text: milliseconds forward / forward + backward (spread), graphs first."""
    lines = ["  ".join(f"{key}: {value}" for key, value in result["machine"].items())]
    for row in result["rows"]:
        line = f"{row['case']:<34} {row['backend']:<15}"
        if row.get("graph_both") is not None:
            line += f" graph {row['graph_forward']:.3f} / {row['graph_both']:.3f} ms "
        low, high = row["spread"]
        line += f" eager {row['forward']:.3f} / {row['both']:.3f} ms ({low:.3f} to {high:.3f})"
        if "peak_gib" in row:
            line += f"  peak {row['peak_gib']:.2f} GiB"
        lines.append(line)
    return "\n".join(lines)
