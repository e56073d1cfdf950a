"""What every ablation has: how long it pretrains, how often, where it writes."""

from omegaconf import OmegaConf

budget = OmegaConf.create(
    {
        # of each pretraining, one of these, where a cell has no budget of its own; the share of
        # warm-up is that of its config
        "epochs": None,
        # images seen, repetitions included
        "images": None,
        # of training steps: each cell gets as many as fit, by the time of a step on this machine
        "minutes": None,
        # so many are timed for that, after five that are not
        "calibration_steps": 20,
    }
)

run = OmegaConf.create(
    {
        # of both stages; where the classification data have no val/, also of the split
        "seeds": [0, 1, 2],
        "output_dir": "output/ablation",
        # the output_dir of another ablation, to share its pretraining runs; null: own ones
        "pretrain_dir": None,
        "title": "Ablation",
        # the plot has bars; or, with a label here, lines over the number x of the cells, one for
        # each name under line
        "x_label": None,
    }
)
