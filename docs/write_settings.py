"""Writes docs/settings.md from the fields that hold the settings: ``make settings``."""

from pathlib import Path

from lomar_det.config.section import describe
from lomar_det.config.settings import DetectionSettings, NamedData, OwnData
from lomar_pretrain.runs.settings import (
    FinetuneData,
    FinetuneSettings,
    PretrainData,
    PretrainSettings,
)

PAGE = Path(__file__).with_name("settings.md")
INTRODUCTION = """# Settings

Every setting of the sections `data` and `train`, with its default in the common configs, what it
may be and what it means. This page is written by `make settings` from the dataclasses in
`lomar_det/config/settings.py` and `projects/lomar_pretrain/runs/settings.py`. A recipe may have
another default: `config.yaml` in a run's folder has what counted. Any setting can be overridden on
the command line as `key=value`, in a yaml config as `KEY VALUE`.

The sections `model`, `dataloader`, `optimizer` and `lr_multiplier` are calls in LazyConfig's sense:
their settings are the arguments of what they call, and the configs in `configs/common/` show them.
"""
SECTIONS = {
    "Pretraining: images": ("data", PretrainData),
    "Pretraining: run": ("train", PretrainSettings),
    "Detection on COCO: images": ("data", NamedData),
    "Detection on data of your own: images": ("data", OwnData),
    "Detection: run": ("train", DetectionSettings),
    "Classification: images": ("data", FinetuneData),
    "Classification: run": ("train", FinetuneSettings),
}


def page() -> str:
    """The page as Markdown."""
    parts = [
        f"\n## {title}\n\n{describe(section, name, title.startswith('Detection'))}\n"
        for title, (name, section) in SECTIONS.items()
    ]
    return INTRODUCTION + "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
