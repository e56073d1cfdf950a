"""The settings of every run, for configs that build their ``train`` section from them."""

from lomar_det.config.settings import RunSettings

run = RunSettings.defaults()
for name in ("output_dir", "init_checkpoint", "max_batch_per_gpu"):
    del run[name]  # each stage has its own
