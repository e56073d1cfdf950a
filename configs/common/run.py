"""The part of ``train`` that both stages share: device, batch split, log."""

run = {
    # auto: the GPU if there is one; cuda, cpu
    "device": "auto",
    # auto: bf16 on a GPU that has it, else fp32
    "precision": "auto",
    # The batch is split into this many forward passes; auto: as few as evenly divide it with at
    # most max_batch_per_gpu images at a time. The size of a batch never depends on the GPUs.
    "accumulation_steps": "auto",
    # null or 0: no limit
    "clip_grad_norm": None,
    "seed": 0,
    "log_period": 20,
    "ddp": {"broadcast_buffers": False, "find_unused_parameters": False},
}
