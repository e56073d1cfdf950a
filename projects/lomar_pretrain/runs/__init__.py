"""The runs: pretraining, fine-tuning, probes. They need detectron2, for its trainer and hooks."""

from lomar_det.compat import require_detectron2

require_detectron2()
