"""The sections that training has in every stage, and those of detection."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from .rules import FLAG, MAPPING, PATHS, TEXT, Rule, number, one_of, pair, whole
from .section import Section, setting, subsection

_FLAGS = Rule(
    "a mapping of arguments to True or False",
    lambda value: isinstance(value, Mapping) and all(map(FLAG.holds, value.values())),
)
# Not ``v in range(2**32)``: Python would compare a text with every number, for minutes.
SEED = Rule("a whole number from 0 to 2**32 - 1", lambda v: whole(0).holds(v) and v < 2**32)


@dataclass(frozen=True, kw_only=True)
class RunSettings(Section):
    """The settings of every training run: where it writes, how it computes, how it ends."""

    output_dir: str = setting(
        "output/run", TEXT | one_of(None), "folder for all that the run writes", "OUTPUT_DIR"
    )
    init_checkpoint: str | None = setting(
        "",
        TEXT | one_of(None),
        "checkpoint to start from, ours or another project's; empty: random weights",
        "MODEL.WEIGHTS",
    )
    reinit_blocks: int = setting(
        0,
        whole(0),
        "upper blocks of the encoder that start from random weights again, after init_checkpoint "
        "is loaded: the last blocks of a masked autoencoder turn into its decoder",
        "MODEL.REINIT_BLOCKS",
    )
    max_minutes: float | None = setting(
        None,
        number("(0, inf)") | one_of(None),
        "the run ends after this many minutes of training; warm-up and decay follow the share of "
        "the minutes used. Evaluation, checkpoints and drawings do not count",
        "SOLVER.MAX_MINUTES",
    )
    device: str = setting(
        "auto", TEXT, "cuda or cpu; auto: the GPU if there is one", "MODEL.DEVICE"
    )
    precision: str = setting(
        "auto",
        one_of("auto", "bf16", "fp16", "fp32"),
        "auto: bf16 on a GPU that has it, else fp32",
        "SOLVER.AMP.PRECISION",
    )
    max_batch_per_gpu: int = setting(
        4, whole(1), "images in one forward pass of one process", "SOLVER.MAX_IMS_PER_GPU"
    )
    accumulation_steps: int | str = setting(
        "auto",
        whole(1) | one_of("auto"),
        "forward passes per step; auto: the smallest number that splits the batch evenly into "
        "passes of at most max_batch_per_gpu images. The batch size never depends on the GPUs",
        "SOLVER.ACCUMULATION_STEPS",
    )
    clip_grad_norm: float | None = setting(
        None, number("[0, inf)") | one_of(None), "largest gradient norm; null or 0: no limit"
    )
    compile: bool = setting(
        False,
        FLAG,
        "torch.compile for the transformer blocks; the first step then takes longer",
        "SOLVER.COMPILE",
    )
    ema_decay: float | None = setting(
        None,
        number("(0, 1)") | one_of(None),
        "decay of averaged weights, such as 0.9999, reached gradually over the first iterations; "
        "evaluation and the next stage use the average; null: no average",
        "SOLVER.EMA_DECAY",
    )
    max_skipped_steps: int = setting(
        10,
        whole(0),
        "steps in a row that may be skipped for a non-finite loss or gradient; one more ends the "
        "run",
        "SOLVER.MAX_SKIPPED_STEPS",
    )
    seed: int = setting(0, SEED, "seed of weights, order, augmentation and masks", "SEED")
    overwrite: bool = setting(
        False,
        FLAG,
        "delete an earlier run's checkpoints and metrics in output_dir, where a run is otherwise "
        "refused",
        "OVERWRITE",
    )
    log_period: int = setting(20, whole(1), "iterations between lines of the log", "LOG_PERIOD")
    wandb: dict | None = setting(
        None,
        MAPPING | one_of(None),
        "Weights & Biases: arguments of wandb.init, such as {project: lomar}; null: off",
    )
    ddp: dict = setting(
        {"broadcast_buffers": False, "find_unused_parameters": False},
        _FLAGS,
        "arguments of DistributedDataParallel, for several processes",
    )

    def __post_init__(self):
        if self.output_dir:  # a shell does not expand the ~ after "="
            object.__setattr__(self, "output_dir", str(Path(self.output_dir).expanduser()))


@dataclass(frozen=True, kw_only=True)
class EpochSettings(RunSettings):
    """The settings of a run that counts in epochs: pretraining and fine-tuning."""

    epochs: float = setting(100, number("(0, inf)"), "passes over the images")
    warmup_epochs: float = setting(
        5, number("[0, inf)"), "epochs of linear warm-up; then the learning rate falls as a cosine"
    )
    base_lr: float = setting(
        1e-3, number("(0, inf)"), "the learning rate is base_lr * total_batch_size / 256"
    )
    total_batch_size: int = setting(1024, whole(1), "images per step, over all processes")
    betas: list[float] = setting(
        [0.9, 0.999], pair(number("[0, 1)")), "betas of an optimizer of the Adam family"
    )
    weight_decay: float = setting(
        0.05, number("[0, inf)"), "weight decay; biases, norms and tables get none"
    )
    checkpoint_epochs: float = setting(5, number("(0, inf)"), "epochs between checkpoints")
    max_to_keep: int | None = setting(
        3, whole(1) | one_of(None), "how many of the newest checkpoints stay; null: all"
    )
    milestone_epochs: float | None = setting(
        None,
        number("(0, inf)") | one_of(None),
        "epochs between checkpoints that are never deleted; null: none",
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointerSettings(Section):
    """When a detector's run writes checkpoints."""

    period: int = setting(
        5000, whole(1), "iterations between checkpoints", "SOLVER.CHECKPOINT_PERIOD"
    )
    max_to_keep: int | None = setting(
        3,
        whole(1) | one_of(None),
        "how many of the newest checkpoints stay; null: all",
        "SOLVER.CHECKPOINT_MAX_TO_KEEP",
    )
    milestone_period: int | None = setting(
        None,
        whole(1) | one_of(None),
        "iterations between checkpoints that are never deleted; null: none",
        "SOLVER.MILESTONE_PERIOD",
    )
    best_metric: str | None = setting(
        "bbox/AP",
        TEXT | one_of(None),
        "model_best.pth holds the weights with the highest value of this metric; segm/AP is that "
        "of masks; null: no such file",
        "TEST.BEST_METRIC",
    )


@dataclass(frozen=True, kw_only=True)
class DetectionSettings(RunSettings):
    """The ``train`` section of a detector."""

    epochs: float | None = setting(
        None,
        number("(0, inf)") | one_of(None),
        "passes over the images; they decide the iterations unless max_iter is set",
    )
    max_iter: int | None = setting(
        None, whole(1) | one_of(None), "iterations, instead of epochs", "SOLVER.MAX_ITER"
    )
    min_iter: int = setting(
        0, whole(0), "iterations that a run of epochs has at least: a small set needs more passes"
    )
    lr_batch_size: int | None = setting(
        64,
        whole(1) | one_of(None),
        "batch size that optimizer.lr is meant for; the log warns of another one; null: no warning",
    )
    eval_period: int = setting(
        5000, whole(0), "iterations between evaluations; 0: only at the end", "TEST.EVAL_PERIOD"
    )
    checkpointer: CheckpointerSettings = subsection(CheckpointerSettings)


@dataclass(frozen=True, kw_only=True)
class DetectionData(Section):
    """The ``data`` section of a detector: how images are resized, and how AP is computed."""

    image_size: int = setting(
        1024, whole(1), "longer side in evaluation, side of a training crop", "INPUT.IMAGE_SIZE"
    )
    min_scale: float = setting(
        0.1, number("(0, inf)"), "large-scale jitter: smallest scale", "INPUT.MIN_SCALE"
    )
    max_scale: float = setting(
        2.0, number("(0, inf)"), "large-scale jitter: largest scale", "INPUT.MAX_SCALE"
    )
    tile_size: int | str | None = setting(
        None,
        whole(32) | one_of("auto", None),
        "for large images: side, in their own pixels, of the tiles that are cut from them in "
        "training and evaluation; auto: from the size of the objects; null: images stay whole",
    )
    tile_overlap: int | None = setting(
        None,
        whole(0) | one_of(None),
        "pixels that neighbouring tiles share, more than an object measures; null: a quarter",
    )
    min_visible: float = setting(
        0.4,
        number("[0, 1]"),
        "share of an object's box that must lie in a tile for the object to be learned there",
    )
    empty_tiles: float = setting(
        0.1, number("[0, inf)"), "tiles without objects in training, for each tile with objects"
    )
    filter_empty: bool = setting(
        True,
        FLAG,
        "leave images without objects out of training",
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
    )
    evaluator: str = setting(
        "pycocotools",
        TEXT,
        "pycocotools, or hotcoco: the same numbers, much faster (pip install hotcoco)",
        "TEST.EVALUATOR",
    )


@dataclass(frozen=True, kw_only=True)
class NamedData(DetectionData):
    """The ``data`` section of a detector on a data set that detectron2 knows by name, as COCO."""

    num_images: int | None = setting(
        None,
        whole(1) | one_of(None),
        "images of the training set, for COCO under its registered name",
    )


@dataclass(frozen=True, kw_only=True)
class SplitSettings(Section):
    """COCO-format files for training or validation."""

    annotations: str | list[str] = setting(MISSING, PATHS, "give the COCO-format JSON file")
    images: str | list[str] = setting(MISSING, PATHS, "give the folder of its images")


@dataclass(frozen=True, kw_only=True)
class OwnData(DetectionData):
    """The ``data`` section of a detector on the user's own files."""

    train: SplitSettings = subsection(SplitSettings)
    val: SplitSettings = subsection(SplitSettings)
    max_detections: int | str = setting(
        "auto",
        whole(1) | one_of("auto"),
        "detections kept per image, and maxDets of AP; auto: the most objects in an image of val, "
        "rounded up to hundreds",
    )
