"""Where the time of a detector's step goes, and how often the host waits for the device.

The profiler records every operation. One of the forward pass belongs to the part of the detector
that called it, one of the backward pass to the part whose forward operation it differentiates:
autograd numbers its nodes, and the profiler knows the numbers.
"""

import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

# part: its methods, by module; of nested methods the innermost counts
PARTS = {
    "images: move, normalise, pad": [("", "preprocess_image")],
    "ViT": [("backbone.net", "forward")],
    "feature pyramid": [("backbone", "forward")],
    "RPN head": [("proposal_generator.rpn_head", "forward")],
    "RPN matching and losses": [
        ("proposal_generator", "label_and_sample_anchors"),
        ("proposal_generator", "losses"),
    ],
    "proposals": [("proposal_generator", "forward")],
    "matching of proposals": [("roi_heads", "label_and_sample_proposals")],
    "ROIAlign": [("roi_heads.box_pooler", "forward"), ("roi_heads.mask_pooler", "forward")],
    "box head": [("roi_heads.box_head", "forward"), ("roi_heads.box_predictor", "forward")],
    "box losses or detections": [
        ("roi_heads.box_predictor", "losses"),
        ("roi_heads.box_predictor", "inference"),
    ],
    "mask head": [("roi_heads.mask_head", "layers")],
    "mask losses or masks": [("roi_heads.mask_head", "forward")],
    "optimizer": [],  # torch marks it itself, as "Optimizer.step#AdamW.step"
    "rest": [],
}
PART_COLUMNS = {
    "case": "",
    "model": "",
    "part": "",
    "forward": ".1f",
    "backward": ".1f",
    "share": ".0%",
    "waits": ".0f",
}
_BACKWARD = "autograd::engine::evaluate_function"
# Counted on a CPU: operations that would make the host wait for a GPU. Python reads a number there,
# or the size of a result depends on the data.
_WAITS = "aten::_local_scalar_dense", "aten::nonzero", "torchvision::nms"


def break_down(
    model: nn.Module, step: Callable[[], None], device: torch.device, repeats: int = 3
) -> list[dict]:
    """Profiles a step of a `GeneralizedRCNN`.

    Args:
        model: The detector that ``step`` calls.
        step: Does the same work each time, and has been called before.
        device: Where the work is done.
        repeats: Steps that are profiled.

    Returns:
        A row for each part that takes time: ``part``; ``forward`` and ``backward`` milliseconds a
        step, of the kernels on CUDA and of the processor elsewhere, which profiling slows down;
        ``share`` of their sum; ``waits``, how often a step makes the host wait for the device (on a
        CPU: would make it wait).
    """
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with _marked(model), profile(activities=activities) as profiler:
        for _ in range(repeats):
            with record_function("rest"):
                step()
        if cuda:
            torch.cuda.synchronize()
    times, waits = _by_part(profiler.events(), cuda)
    whole = sum(times.values())
    rows = []
    for part in PARTS:
        forward, backward = times[part, "forward"], times[part, "backward"]
        if forward or backward or waits[part]:
            row = {"part": part, "forward": forward / repeats, "backward": backward / repeats}
            row["share"] = (forward + backward) / whole
            rows.append(row | {"waits": waits[part] / repeats})
    return rows


@contextlib.contextmanager
def _marked(model: nn.Module) -> Iterator[None]:
    """While it lasts, the profiler sees when the model enters and leaves its parts."""
    owners = []
    try:
        for part, methods in PARTS.items():
            for path, method in methods:
                owner = model.get_submodule(path)
                setattr(owner, method, _mark(getattr(owner, method), part))
                owners.append((owner, method))
        yield
    finally:
        for owner, method in owners:
            delattr(owner, method)  # uncovers the method of the class


def _mark(method: Callable, part: str) -> Callable:
    @functools.wraps(method)
    def marked(*args, **kwargs):
        with record_function(part):
            return method(*args, **kwargs)

    return marked


def _by_part(events: Iterable[FunctionEvent], cuda: bool) -> tuple[dict, dict]:
    """Milliseconds by (part, direction), and the waits by part."""
    roots = [e for e in events if e.device_type == DeviceType.CPU and e.cpu_parent is None]
    makers: dict[int, tuple[float, str]] = {}  # of a node's number: when and where it was made
    for event, part, backward in _walk(roots, {}):
        # An operation has the number of the node that is made next. The last operation with a
        # number is the one that made the node.
        if not backward and event.sequence_nr >= 0:
            made = event.time_range.start, part
            makers[event.sequence_nr] = max(made, makers.get(event.sequence_nr, made))
    times: dict[tuple[str, str], float] = defaultdict(float)
    waits: dict[str, int] = defaultdict(int)
    for event, part, backward in _walk(roots, makers):
        times[part, "backward" if backward else "forward"] += _own_time(event, cuda)
        if cuda:
            waits[part] += event.name.endswith("Synchronize")
        elif part != "optimizer":  # it counts its steps on the host in any case
            waits[part] += event.name in _WAITS
    return times, waits


def _own_time(event: FunctionEvent, cuda: bool) -> float:
    """Milliseconds that an operation takes without those that it calls."""
    if not cuda:
        return event.self_cpu_time_total / 1e3
    # The profiler lists our marks among the kernels, too.
    return sum(kernel.duration for kernel in event.kernels if kernel.name not in PARTS) / 1e3


def _walk(
    events: Iterable[FunctionEvent],
    makers: dict[int, tuple[float, str]],
    part: str = "rest",
    backward: bool = False,
) -> Iterator[tuple[FunctionEvent, str, bool]]:
    """Every operation with its part and whether it belongs to the backward pass."""
    for event in events:
        inner, inside_backward = part, backward
        if event.name.startswith(_BACKWARD):
            inner, inside_backward = makers.get(event.sequence_nr, (0, "rest"))[1], True
        elif event.name.startswith("Optimizer."):
            inner = "optimizer"
        elif event.name in PARTS:
            inner = event.name
        yield event, inner, inside_backward
        yield from _walk(event.cpu_children, makers, inner, inside_backward)
