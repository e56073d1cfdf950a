"""How to fine-tune a detector on a small set: learning rate and layer decay for each pretraining.

The choice is made on training images alone: nine pairs of settings for each arm, trained on 29
labelled images of blood cells and measured on 58 others of the same training set. Pretraining sees
all 292 without labels, for four minutes of one core (see ``detection_blood_cells_tiny.py``).

    python -m lomar_det.data.split projects/blood_cells/data/annotations_train.json \
        output/small_sets/train.json output/small_sets/val.json --share 0.8
    python -m lomar_det.data.split output/small_sets/train.json \
        output/small_sets/labelled.json output/small_sets/rest.json --share 0.125
    python tools/ablate.py --config-file configs/ablation/detection_small_sets_tiny.py
"""

from omegaconf import OmegaConf

from .detection_blood_cells_tiny import ARMS, budget, downstream, pretrain, run

RATES, DECAYS = (10, 25, 50), (70, 90, 100)  # in 1e-5, and in hundredths: 100 is no decay

downstream.data.train.annotations = "output/small_sets/labelled.json"
downstream.data.val.annotations = "output/small_sets/val.json"
cells = OmegaConf.create()
for arm, cell in ARMS.items():
    for rate in RATES:
        for decay in DECAYS:
            settings = [f"optimizer.lr={rate}e-5", f"optimizer.params.lr_decay_rate={decay / 100}"]
            name = f"{arm}_rate{rate}_decay{decay}"
            cells[name] = {**cell, "downstream": {"overrides": settings}}
run.update(seeds=[0], title="Learning rate and layer decay on 29 labelled images")
run.output_dir = "output/ablation/detection_small_sets_tiny"
run.pretrain_dir = "output/ablation/detection_blood_cells_tiny"
