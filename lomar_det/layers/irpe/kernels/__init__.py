"""The Triton kernels of `lomar_det.layers.irpe.fused`."""
