"""Draws what a checkpoint reconstructs of any images: `tools/visualize_reconstruction.py`."""

import argparse
from pathlib import Path

from lomar_det.data.image_files import find_image_files
from lomar_det.errors import UserError

from .plots import check_format, reconstruction_figure
from .reconstruction import open_examples

FILE_NAME = "reconstruction.png"  # where the output is a folder
MAX_IMAGES = 100  # rows of one sheet; viewers do not open longer ones


def visualize(args: argparse.Namespace) -> Path:
    """What the tool does with its arguments; returns the file that it wrote.

    Raises:
        UserError: anything the user can mend.
    """
    from lomar_det.engine import pick_device  # both imports need detectron2

    from ..models.from_checkpoint import load_pretrained

    if not 1 <= args.num_images <= MAX_IMAGES:
        raise UserError(f"--num-images {args.num_images} must be 1 to {MAX_IMAGES}")
    if args.mask_ratio is not None and not 0 < args.mask_ratio < 1:
        raise UserError(f"--mask-ratio {args.mask_ratio} must lie between 0 and 1")
    output = output_file(args.output)
    paths = find_image_files(args.input)
    norm_pix_loss = False if args.raw_pixels else None
    model = load_pretrained(args.checkpoint, args.config_file, norm_pix_loss)
    model.to(pick_device(args.device, "--device"))
    images = open_examples(paths, args.num_images, model)
    if not images:
        raise UserError(f"none of the images of --input could be read, first {paths[0]}")
    if args.mask_ratio is not None:
        model.mask_ratio = args.mask_ratio
    try:
        title = Path(args.checkpoint).name
        figure = reconstruction_figure(model, images, args.num_windows, args.seed, title)
    except ValueError as error:  # the model says what is wrong with these settings
        raise UserError(f"--num-windows or --mask-ratio: {error}") from None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error}") from None
    print(f"Image: {output}")
    return output


def output_file(output: str | Path) -> Path:
    """The image to write: ``output`` itself, or a file in it where it names a folder.

    Raises:
        UserError: a format that matplotlib cannot write.
    """
    output = Path(output).expanduser()
    if output.is_dir() or not output.suffix:
        return output / FILE_NAME
    check_format("--output", output)
    return output
