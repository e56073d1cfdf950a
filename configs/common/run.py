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
    # torch.compile for the transformer blocks; the first step then takes longer
    "compile": False,
    # weights averaged with this decay (0.9999, say), which are then evaluated and handed on
    "ema_decay": None,
    # so many steps in a row with a non-finite loss or gradient are left out, then the run ends
    "max_skipped_steps": 10,
    "seed": 0,
    # delete another run's checkpoints in output_dir instead of refusing to start
    "overwrite": False,
    "log_period": 20,
    # Weights & Biases: {project: ..., name: ...}, arguments of wandb.init; null for none
    "wandb": None,
    "ddp": {"broadcast_buffers": False, "find_unused_parameters": False},
}
