"""Backbone and pyramid, for any batch and image size, by torch.export and ONNX."""

from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor

from ..checkpoint import find_encoder
from ..errors import UserError
from .compare import difference, noise


def export_backbone(
    model: GeneralizedRCNN, path: Path, size: tuple[int, int] | None = None
) -> dict:
    """Backbone and pyramid by torch.export, for any batch and image size.

    Args:
        model: A detector whose backbone has a `LoMaRViT`.
        path: The .pt2 file to write.
        size: (height, width) in pixels to export for that size alone.

    Returns:
        What the file takes and gives, and how far it was off the model.
    """
    program, sizes = _record(model, size)
    torch.export.save(program, path)
    module = torch.export.load(path).module()

    def run(images: Tensor) -> list[Tensor]:
        return list(module(images).values())

    return _describe(model, size, sizes, run)


def export_backbone_onnx(
    model: GeneralizedRCNN, path: Path, size: tuple[int, int] | None = None
) -> dict:
    """The same by ONNX; see `export_backbone`."""
    import onnxruntime

    program, sizes = _record(model, size)
    names = list(model.backbone.output_shape())
    onnx = torch.onnx.export(
        program, dynamo=True, input_names=["images"], output_names=names, verbose=False
    )
    onnx.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(out) for out in session.run(names, {"images": images.numpy()})]

    return _describe(model, size, sizes, run)


def _record(
    model: GeneralizedRCNN, size: tuple[int, int] | None
) -> tuple[torch.export.ExportedProgram, list[tuple[int, int, int]]]:
    """The backbone's graph, and (batch, height, width) to check it at."""
    backbone = model.backbone
    divisor = backbone.size_divisibility
    if size is not None:
        if any(side < 1 or side % divisor for side in size):
            raise UserError(f"--input-size {size[0]} {size[1]}: give multiples of {divisor}")
        sizes, dynamic = [(1, *size)], None
    else:
        steps = least_size(model) // divisor
        sides = [divisor * (steps + i) for i in range(4)]
        # recorded at the first, checked at all
        sizes = [
            (2, sides[1], sides[2]),
            (1, sides[0], sides[0]),
            (3, sides[0], sides[3]),
            (1, 2 * sides[1], sides[0]),
        ]
        batch, rows, columns = (
            torch.export.Dim("batch"),
            torch.export.Dim("rows", min=steps),
            torch.export.Dim("columns", min=steps),
        )
        dynamic = ({0: batch, 2: divisor * rows, 3: divisor * columns},)
    example = noise(model, *sizes[0])
    with torch.no_grad():
        return torch.export.export(backbone, (example,), dynamic_shapes=dynamic), sizes


def least_size(model: GeneralizedRCNN) -> int:
    """The smallest side, in pixels, of a graph for all sizes.

    More than one attention window, and more than one cell of p6: torch treats sizes of 1 apart,
    and a graph cannot hold both cases.

    Raises:
        UserError: the backbone depends on the size in ways that a graph cannot hold.
    """
    _, net = find_encoder(model)
    attentions = [block.attn for block in net.blocks]
    if net.pos_embed is not None or any(a.rel_pos != "irpe" for a in attentions):
        raise UserError(
            "absolute and decomposed positions are interpolated for a size: this model can be "
            "exported for one size only, with --input-size HEIGHT WIDTH"
        )
    window = max(a.window_size for a in attentions) * net.patch_size
    divisor = model.backbone.size_divisibility
    return max(window // divisor + 1, 3) * divisor


def _describe(
    model: GeneralizedRCNN,
    size: tuple[int, int] | None,
    sizes: list[tuple[int, int, int]],
    run: Callable[[Tensor], list[Tensor]],
) -> dict:
    """Inputs and outputs of the backbone, and a comparison with the model at each of the sizes."""
    backbone, checked = model.backbone, []
    for batch, height, width in sizes:
        images = noise(model, batch, height, width)
        with torch.no_grad():
            pairs = list(zip(backbone(images).values(), run(images), strict=True))
        checked.append({"input": [batch, 3, height, width], "difference": difference(pairs)})
    shape = [1, 3, *size] if size else ["batch", 3, "height", "width"]
    entry = {"name": "images", "shape": shape, "dtype": "float32"}
    if size is None:
        entry |= {"multiple_of": backbone.size_divisibility, "at_least": least_size(model)}
    return {
        "inputs": [entry | {"values": "(RGB - pixel_mean) / pixel_std, then padded with zeros"}],
        "outputs": [
            {"name": name, "channels": spec.channels, "stride": spec.stride}
            for name, spec in backbone.output_shape().items()
        ],
        "checked": checked,
    }
