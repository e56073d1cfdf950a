"""The rules for settings, and that detection keeps to them before it looks at data."""

import math

import numpy as np
import pytest
from helpers.common import TINY_DETECTOR, tool_args
from omegaconf import OmegaConf

from lomar_det.config.rules import (
    FLAG,
    PATHS,
    TEXT,
    check_settings,
    number,
    one_of,
    pair,
    whole,
)
from lomar_det.config.settings import SEED
from lomar_det.detection import train as detection
from lomar_det.errors import UserError


@pytest.mark.parametrize(
    "rule, good, bad",
    [
        (whole(1), [1, 10**12, np.int64(3)], [0, -1, 1.0, True, "1", None, [1]]),
        (
            number("(0, 1]"),
            [1, 0.5, 1e-30, np.float32(0.5)],
            [0, 1.0001, -1, math.nan, "0.5", True],
        ),
        (number("[0, inf)"), [0, 0.0, 1e300], [-1e-9, math.inf, math.nan, None]),
        (one_of("auto", None), ["auto", None], ["Auto", "", 0, []]),
        (whole(1) | one_of("auto"), [1, "auto"], [0, "all", None]),
        (pair(number("[0, 1)")), [[0.9, 0.5], (0, 0)], [[0.9], [0.9, 1], 0.9, "ab", [1, 2, 3]]),
        (pair(number("(0, 1]"), ascending=True), [[0.2, 1], [1, 1]], [[1, 0.2], [0, 1]]),
        (TEXT, ["", "a"], [None, 5, ["a"]]),
        (PATHS, ["a", ["a", "b"]], ["", [], None, 5, ["a", 5], {"a": 1}]),
        (FLAG, [True, False], [0, 1, "True", None]),
    ],
)
def test_rules(rule, good, bad):
    assert all(rule.holds(value) for value in good)
    assert not any(rule.holds(value) for value in bad)


def test_the_first_bad_setting_is_named_with_its_rule():
    rules = {"a.b": whole(2), "a.none": whole(1), "list": pair(whole(1)), "later": whole(1)}
    cfg = OmegaConf.create({"a": {"b": 2}, "list": [1, 2], "later": "???"})
    check_settings(cfg, rules)  # what is absent or not yet given is for others to miss
    cfg.a.b = 1
    cfg.list = [0, 0]
    with pytest.raises(UserError, match="^a.b=1 .*2"):
        check_settings(cfg, rules)


@pytest.mark.parametrize(
    "setting",
    [
        "train.max_iter=many",
        "train.checkpointer.period=0",
        "train.checkpointer=null",
        "train.device=null",
        "train.seed=4294967296",
        "train.ddp.find_unused_parameters=maybe",
        "data.image_size=0",
        "data.min_scale=nan",
        "optimizer.lr=0",
        "optimizer.weight_decay=-1",
        "optimizer.params.lr_decay_rate=0",
        "optimizer.betas=[0.9,1.5]",
        "dataloader.train.mapper.image_format=BGR",
        "lr_multiplier.warmup_iters=-1",
        "dataloader.train.total_batch_size=0",
        "dataloader.test.num_workers=-1",
    ],
)
def test_detection_refuses_before_it_looks_for_data(tmp_path, setting):
    opts = [*TINY_DETECTOR, f"train.output_dir={tmp_path}", setting]
    config = "custom/mask_rcnn_lomar_vit_tiny.py"  # its data is not set
    name = setting.split("=")[0].removesuffix(".find_unused_parameters")
    with pytest.raises(UserError, match=f"^{name}="):
        detection.main(tool_args(config, *opts))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", ["abc", -1, 2**32])
def test_a_seed_that_is_none_is_refused_at_once(seed):
    """Not compared with all that there are."""
    with pytest.raises(UserError, match="train.seed="):
        check_settings({"train": {"seed": seed}}, {"train.seed": SEED})
    check_settings({"train": {"seed": 2**32 - 1}}, {"train.seed": SEED})
