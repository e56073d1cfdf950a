"""The sections that training has in every stage, and those of detection."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from .rules import FLAG, TEXT, Rule, number, one_of, pair, whole
from .section import Section, setting, subsection

_FLAGS = Rule(
    "a mapping of arguments to True or False",
    lambda value: isinstance(value, Mapping) and all(map(FLAG.holds, value.values())),
)
_MAPPING = Rule("a mapping", lambda value: isinstance(value, Mapping))
_PATHS = Rule(
    "a path, or a list of paths",
    lambda value: bool(value) and (TEXT.holds(value) or all(map(TEXT.holds, value))),
)
# Not "in range": of a text, that would compare it with all numbers, for minutes.
SEED = Rule("a whole number from 0 to 2**32 - 1", lambda v: whole(0).holds(v) and v < 2**32)


@dataclass(frozen=True, kw_only=True)
class RunSettings(Section):
    """What every training run has: where it writes, how it computes, how it ends."""

    output_dir: str = setting(
        "output/run", TEXT | one_of(None), "the folder that the run writes", "OUTPUT_DIR"
    )
    init_checkpoint: str | None = setting(
        "",
        TEXT | one_of(None),
        "weights to start from, ours or another project's; empty: random weights",
        "MODEL.WEIGHTS",
    )
    max_minutes: float | None = setting(
        None,
        number("(0, inf)") | one_of(None),
        "the run ends after so many minutes of training; warm-up and decay follow the share of "
        "them that is used. Evaluation, checkpoints and drawings do not count",
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
        "forward passes of a step; auto: as few as evenly divide the batch with at most "
        "max_batch_per_gpu images at a time. The size of a batch never depends on the GPUs",
        "SOLVER.ACCUMULATION_STEPS",
    )
    clip_grad_norm: float | None = setting(
        None, number("[0, inf)") | one_of(None), "largest norm of the gradients; null or 0: any"
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
        "keeps weights averaged with this decay (0.9999, say), which are then evaluated and "
        "handed on",
        "SOLVER.EMA_DECAY",
    )
    max_skipped_steps: int = setting(
        10,
        whole(0),
        "so many steps in a row with a non-finite loss or gradient are skipped; more end the run",
        "SOLVER.MAX_SKIPPED_STEPS",
    )
    seed: int = setting(0, SEED, "of weights, order, augmentation and masks", "SEED")
    overwrite: bool = setting(
        False,
        FLAG,
        "delete another run's checkpoints in output_dir instead of refusing to start",
        "OVERWRITE",
    )
    log_period: int = setting(20, whole(1), "iterations between lines of the log", "LOG_PERIOD")
    wandb: dict | None = setting(
        None,
        _MAPPING | one_of(None),
        "Weights & Biases: arguments of wandb.init, such as {project: lomar}; null: none",
    )
    ddp: dict = setting(
        {"broadcast_buffers": False, "find_unused_parameters": False},
        _FLAGS,
        "arguments of DistributedDataParallel",
    )

    def __post_init__(self):
        if self.output_dir:  # no shell replaces the ~ behind a "="
            object.__setattr__(self, "output_dir", str(Path(self.output_dir).expanduser()))


@dataclass(frozen=True, kw_only=True)
class EpochSettings(RunSettings):
    """A run whose settings count in epochs: pretraining and fine-tuning."""

    epochs: float = setting(100, number("(0, inf)"), "passes over the images")
    warmup_epochs: float = setting(
        5, number("[0, inf)"), "the learning rate rises linearly so long, then falls as a cosine"
    )
    base_lr: float = setting(
        1e-3, number("(0, inf)"), "the learning rate is base_lr * total_batch_size / 256"
    )
    total_batch_size: int = setting(1024, whole(1), "images of a step, over all processes")
    betas: list[float] = setting([0.9, 0.999], pair(number("[0, 1)")), "of the adam family")
    weight_decay: float = setting(0.05, number("[0, inf)"), "none on biases, norms and tables")
    checkpoint_epochs: float = setting(5, number("(0, inf)"), "epochs between checkpoints")
    max_to_keep: int | None = setting(
        3, whole(1) | one_of(None), "so many of the checkpoints stay; null: all"
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
        "so many of the checkpoints stay; null: all",
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
        "model_best.pth holds the weights with the highest; segm/AP for masks, null: none",
        "TEST.BEST_METRIC",
    )


@dataclass(frozen=True, kw_only=True)
class DetectionSettings(RunSettings):
    """The ``train`` section of a detector."""

    epochs: float | None = setting(
        None,
        number("(0, inf)") | one_of(None),
        "passes over the images; decide the iterations, unless those are given",
    )
    max_iter: int | None = setting(
        None, whole(1) | one_of(None), "iterations, in place of epochs", "SOLVER.MAX_ITER"
    )
    lr_batch_size: int | None = setting(
        64,
        whole(1) | one_of(None),
        "the batch that optimizer.lr is meant for; the log remarks on another one",
    )
    eval_period: int = setting(
        5000, whole(0), "iterations between evaluations; 0: at the end alone", "TEST.EVAL_PERIOD"
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
    filter_empty: bool = setting(
        True,
        FLAG,
        "leave images without objects out of training",
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
    )
    evaluator: str = setting(
        "pycocotools",
        TEXT,
        "pycocotools, or hotcoco: the same numbers, much sooner (pip install hotcoco)",
        "TEST.EVALUATOR",
    )
    num_images: int | None = setting(
        None, whole(1) | one_of(None), "of the training set, where COCO is read by its name"
    )


@dataclass(frozen=True, kw_only=True)
class SplitSettings(Section):
    """COCO-format files for training or validation."""

    annotations: str | list[str] = setting(MISSING, _PATHS, "give the COCO-format JSON file")
    images: str | list[str] = setting(MISSING, _PATHS, "give the folder of its images")


@dataclass(frozen=True, kw_only=True)
class OwnData(DetectionData):
    """The ``data`` section of a detector on files of the user's own."""

    train: SplitSettings = subsection(SplitSettings)
    val: SplitSettings = subsection(SplitSettings)
    max_detections: int | str = setting(
        "auto",
        whole(1) | one_of("auto"),
        "detections kept per image, and maxDets of AP; auto: 100, or as many hundreds as val needs",
    )
