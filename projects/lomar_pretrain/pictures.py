"""Pictures of a run: what the model reconstructs, and its loss curve."""

from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.transforms import v2

from lomar_det.layers import unpatchify

from .data import denormalize, load_image, normalize
from .lomar import LoMaR
from .windows import WindowSample, sample_windows

NORMALISED_NOTE = (
    "Targets are normalised per patch: predictions are shown with the true mean and variance of "
    "each masked patch."
)


@torch.no_grad()
def reconstruct_window(model: LoMaR, image: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """One random window of one picture, as the paper's Figure 2 shows it.

    Args:
        model: A LoMaR model.
        image: (3, height, width), normalised.
        seed: Picks the window and the mask.

    Returns:
        ``box``, (4,) window in pixels (x, y, width, height), and three pictures (3, k * p, k * p)
        in [0, 1]: ``window``, ``masked`` (grey where masked), ``reconstructed``.
    """
    device, p, k = image.device, model.patch_size, model.window_size
    grid = (image.shape[1] // p, image.shape[2] // p)
    generator = torch.Generator().manual_seed(seed)
    sample = sample_windows(1, grid, k, 1, model.mask_ratio, generator=generator)
    windows: WindowSample = sample.to(device)
    was_training = model.training
    model.eval()
    pred = model(image[None], windows).pred.float()  # (1, K, p * p * 3)
    model.train(was_training)
    patches = model.window_patches(image[None], windows)
    if model.norm_pix_loss:
        mean, var = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
        pred = pred * (var + 1e-6).sqrt() + mean
    mask = windows.mask[..., None]
    row, column = divmod(int(windows.patch_ids[0, 0]), grid[1])

    def picture(tokens: Tensor) -> Tensor:
        return unpatchify(tokens, (k, k), p)[0]

    grey = torch.where(mask, 0.5, 0.0).expand_as(patches)
    return {
        "box": torch.tensor([column * p, row * p, k * p, k * p]),
        "window": denormalize(picture(patches)),
        "masked": torch.where(picture(grey) > 0, picture(grey), denormalize(picture(patches))),
        "reconstructed": denormalize(picture(torch.where(mask, pred, patches))),
    }


def reconstruction_sheet(model: LoMaR, paths: list, output: str | Path, seed: int = 0) -> Path:
    """Draws the paper's four panels for some pictures: original, window, masked, reconstructed.

    Args:
        model: A LoMaR model, on any device.
        paths: One row of panels each.
        output: The PNG to write.
        seed: Picks windows and masks.
    """
    device = next(model.parameters()).device
    fit = v2.Compose([v2.Resize(max(model.img_size)), v2.CenterCrop(model.img_size)])
    figure = Figure(figsize=(8, 2 * len(paths) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(paths), 4, squeeze=False)
    titles = ("original", "window", "masked", "reconstructed")
    for number, (row, path) in enumerate(zip(axes, paths, strict=True)):
        image = normalize(fit(load_image(path))).to(device)
        panels = reconstruct_window(model, image, seed + number)
        panels["original"] = denormalize(image)
        for axis, title in zip(row, titles, strict=True):
            axis.imshow(panels[title].permute(1, 2, 0).cpu().numpy())
            axis.set_axis_off()
            if number == 0:
                axis.set_title(title)
        x, y, width, height = panels["box"].tolist()
        row[0].add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="red", lw=2))
    if model.norm_pix_loss:
        figure.supxlabel(NORMALISED_NOTE, fontsize=7)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    return Path(output)


def plot_loss(metrics: list[dict], output: str | Path, key: str = "total_loss") -> Path:
    """Draws a loss over the iterations, with the learning rate behind it.

    Args:
        metrics: Lines of a ``metrics.json``.
        output: The PNG to write.
        key: The metric.
    """
    points = [line for line in metrics if key in line]
    iterations = [line["iteration"] for line in points]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.plot(iterations, [line[key] for line in points], color="tab:blue")
    axis.set(xlabel="iteration", ylabel="loss")
    axis.grid(alpha=0.3)
    if all("lr" in line for line in points):
        twin = axis.twinx()
        twin.plot(iterations, [line["lr"] for line in points], color="tab:gray", lw=1, ls="--")
        twin.set_ylabel("learning rate (dashed)", color="tab:gray")
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    return Path(output)
