"""Package definition: installs ``lomar_det``, the bundled ``lomar_pretrain`` and the recipes.

detectron2 is needed by the detector and by both training engines, but is deliberately absent from
``install_requires``: it is not published under its own name, and people who have a build of their
own must not get it replaced. ``make setup`` provides one; README.md explains the other ways.
"""

import re
from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Reads ``__version__`` as text: importing the package would need torch at build time."""
    source = (ROOT / "lomar_det" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r"""^__version__\s*=\s*["']([^"']+)["']""", source, re.MULTILINE)
    if match is None:
        raise RuntimeError("lomar_det/__init__.py does not define __version__")
    return match.group(1)


def list_packages() -> list[str]:
    """Lists both packages; paths stay relative, as setuptools wants them.

    The recipes in ``configs/`` go along as `lomar_det.configs`: they are data in Python's syntax,
    read by LazyConfig and never imported, but that is the simplest way to install them.
    """
    pretrain = find_packages(str(ROOT / "projects" / "lomar_pretrain"))
    configs = find_namespace_packages(str(ROOT / "configs"))
    return [
        *find_packages(str(ROOT), include=["lomar_det", "lomar_det.*"]),
        "lomar_pretrain",
        *(f"lomar_pretrain.{package}" for package in pretrain),
        "lomar_det.configs",
        *(f"lomar_det.configs.{package}" for package in configs),
    ]


setup(
    name="lomar_det",
    version=read_version(),
    description="LoMaR self-supervised pretraining and ViTDet detection for detectron2",
    license="Apache-2.0",
    packages=list_packages(),
    package_dir={"lomar_pretrain": "projects/lomar_pretrain", "lomar_det.configs": "configs"},
    package_data={"lomar_det.configs": ["*/*.yaml"]},
    python_requires=">=3.11",
    # Ranges for people who install into an environment of their own; requirements.txt holds the
    # exact versions the tests run with.
    install_requires=[
        "torch>=2.6",  # torch.load defaults to weights_only=True from here on
        "torchvision>=0.21",
        "numpy>=1.26",
        "Pillow>=10.0",
        "timm>=1.0",
        "safetensors>=0.4",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "omegaconf>=2.1,<2.4",
        "hydra-core>=1.1",
        "yacs>=0.1.8",
        "pycocotools>=2.0.8",
        "shapely>=2.0",  # LSJ's polygon cropping; missing, it crashes inside a loader worker
        "cloudpickle>=2.0",
        "tabulate>=0.9",
        "termcolor>=1.1",
        "tqdm>4.29.0",
        "packaging>=21.0",
        "tensorboard>=2.12",
        "matplotlib>=3.7",
        "contourpy>=1.1",
        "setuptools<82",  # detectron2.model_zoo imports pkg_resources, gone in 82
    ],
    extras_require={
        "shards": ["webdataset>=1.0"],
        "export": ["onnx>=1.16", "onnxscript>=0.5", "onnxruntime>=1.18"],
        "eval": ["hotcoco>=1.3"],
        "jpeg": ["simplejpeg>=1.8"],
        "large": ["rasterio>=1.4", "openslide-python>=1.3", "openslide-bin>=4.0"],
        "wandb": ["wandb>=0.17"],
        "dev": [
            "pytest>=8.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "scikit-learn>=1.5",
        ],
    },
)
