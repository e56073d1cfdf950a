"""The ``data`` and ``train`` sections of pretraining and of fine-tuning."""

from dataclasses import dataclass

from omegaconf import MISSING

from lomar_det.config.rules import FLAG, MAPPING, PATHS, TEXT, number, one_of, pair, whole
from lomar_det.config.section import Section, other_default, setting, subsection
from lomar_det.config.settings import EpochSettings

_CROP_SCALE = pair(number("(0, 1]"), ascending=True)


@dataclass(frozen=True, kw_only=True)
class ImageData(Section):
    """Settings of both ``data`` sections."""

    max_bad_fraction: float = setting(
        0.05,
        number("[0, 1]"),
        "a larger share of unreadable images ends the run; 0: the first one does. They are listed "
        "in bad_images.txt; training replaces them, validation leaves them out",
    )
    num_workers: int = setting(8, whole(0), "processes that open images")


@dataclass(frozen=True, kw_only=True)
class PretrainData(ImageData):
    """The ``data`` section of pretraining."""

    path: str | list[str] = setting(
        MISSING,
        PATHS,
        "give the folder of your images, data.path=FOLDER; or a list of paths (.txt), a COCO .json "
        "file, tar shards (shards-{000..123}.tar), an image, or a [list, of, these]",
    )
    image_root: str | None = setting(
        None,
        TEXT | one_of(None),
        "folder that the file names in a COCO file start from; null: that of the COCO file",
    )
    max_megapixels: float | None = setting(
        180,
        number("(0, inf)") | one_of(None),
        "larger images count as unreadable, unless they are read by region; null: no limit",
    )
    region_size: int | None = setting(
        None,
        whole(1) | one_of(None),
        "for large images: side, in their own pixels, of the random part that a sample shows; an "
        "epoch sees images in proportion to their area. null: a sample is a crop, see crop_scale",
    )
    scale: list[float] = setting(
        [1.0, 1.0],
        pair(number("(0, inf)"), ascending=True),
        "with region_size: smallest and largest number of the image's pixels for one of the model",
    )
    max_empty: float = setting(
        0.5,
        number("[0, 1]"),
        "with region_size: a window is drawn again if a larger share of its patches shows one "
        "colour, such as glass, water or a black border; 1: never",
    )
    crop_scale: list[float] = setting(
        [0.2, 1.0],
        _CROP_SCALE,
        "smallest and largest share of the image's area in a crop, resized to model.img_size",
    )
    flip: bool = setting(
        False,
        FLAG,
        "flip images at random; the paper's supplement only crops, the released code also flips",
    )


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(Section):
    """kNN accuracy of the features during pretraining."""

    path: str = setting("", TEXT, "folder of class folders with labelled images; empty: no probe")
    epochs: float = setting(50, number("[0, inf)"), "epochs between measurements; 0: no probe")
    k: int = setting(20, whole(1), "number of nearest neighbours")
    max_images: int = setting(2000, whole(1), "at most this many images of the folder")
    batch_size: int = setting(64, whole(1), "images in a forward pass")


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(EpochSettings):
    """The ``train`` section of pretraining; by default the paper's main recipe."""

    epochs: float = other_default(EpochSettings, "epochs", 1600)
    warmup_epochs: float = other_default(EpochSettings, "warmup_epochs", 40)
    base_lr: float = other_default(EpochSettings, "base_lr", 1.5e-4)
    total_batch_size: int = other_default(EpochSettings, "total_batch_size", 4096)
    # 256 images of 224x224 with 4 windows take 18.2 GiB (docs/performance.md): a GPU of 24 GB.
    max_batch_per_gpu: int = other_default(EpochSettings, "max_batch_per_gpu", 256)
    betas: list[float] = setting([0.9, 0.95], pair(number("[0, 1)")), "betas of AdamW")
    checkpoint_epochs: float = other_default(EpochSettings, "checkpoint_epochs", 20)
    milestone_epochs: float | None = other_default(EpochSettings, "milestone_epochs", 400)
    picture_epochs: float = setting(
        50, number("[0, inf)"), "epochs between drawings of reconstructions; 0: none"
    )
    probe: ProbeSettings = subsection(ProbeSettings)


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings(Section):
    """Augmentation as timm names it; null switches one off."""

    scale: list[float] = setting([0.08, 1.0], _CROP_SCALE, "share of the image's area in a crop")
    hflip: float | None = setting(
        0.5, number("[0, 1]") | one_of(None), "probability of a horizontal flip"
    )
    vflip: float | None = setting(
        0.0, number("[0, 1]") | one_of(None), "probability of a vertical flip"
    )
    color_jitter: float | None = setting(
        None, number("[0, inf)") | one_of(None), "strength of changes of colour"
    )
    auto_augment: str | None = setting(
        "rand-m9-mstd0.5-inc1", TEXT | one_of(None), "RandAugment or AutoAugment"
    )
    re_prob: float | None = setting(
        0.25, number("[0, 1]") | one_of(None), "probability of random erasing"
    )
    others: dict = setting({}, MAPPING, "further arguments of timm's create_transform")


@dataclass(frozen=True, kw_only=True)
class FinetuneData(ImageData):
    """The ``data`` section of classification."""

    path: str = setting(
        MISSING,
        TEXT,
        "give a folder with train/CLASS/ and val/CLASS/, or one of class folders, which is split",
    )
    val_fraction: float = setting(
        0.2, number("(0, 1)"), "share of each class kept for validation if there is no val/"
    )
    augmentation: AugmentationSettings = subsection(AugmentationSettings)
    crop_pct: float = setting(
        0.875, number("(0, 1]"), "share of the shorter side in validation's centre crop"
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(EpochSettings):
    """The ``train`` section of classification; by default the paper's fine-tuning."""

    max_batch_per_gpu: int = other_default(EpochSettings, "max_batch_per_gpu", 128)
    max_to_keep: int | None = other_default(EpochSettings, "max_to_keep", 1)
    optimizer: str = setting(
        "adamw", TEXT, "name of an optimizer of timm; betas apply to the Adam family"
    )
    layer_decay: float | None = setting(
        0.65,
        number("(0, 1]") | one_of(None),
        "learning rate of a block divided by that of the next block; null: the same for all",
    )
    mixup: float = setting(0.8, number("[0, inf)"), "alpha of mixup; 0: none")
    cutmix: float = setting(1.0, number("[0, inf)"), "alpha of cutmix; 0: none")
    label_smoothing: float = setting(
        0.1, number("[0, 1)"), "share of the target that is spread over all classes"
    )
    eval_epochs: float = setting(
        1, number("[0, inf)"), "epochs between evaluations; 0: only at the end"
    )
    best_metric: str | None = setting(
        "classification/top1",
        TEXT | one_of(None),
        "model_best.pth holds the weights with the highest value of this metric; null: no such "
        "file",
    )
