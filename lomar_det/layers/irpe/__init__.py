"""Image relative position encoding (iRPE) and attention with it.

`buckets` says which row of the table a pair of tokens reads, `dense` is the literal formula,
`fused` the Triton kernels, and `dispatch` chooses between them.
"""

from .buckets import (
    BUCKET_STEPS,
    CLS_BUCKET,
    IRPE,
    NUM_BUCKETS,
    NUM_SIDE_BUCKETS,
    NUM_SPATIAL_BUCKETS,
    TokenGrid,
    bucket_table,
    piecewise_index,
    side_buckets,
    subset_buckets,
)
from .dispatch import BACKENDS, rpe_attention

__all__ = [
    "BACKENDS",
    "BUCKET_STEPS",
    "CLS_BUCKET",
    "IRPE",
    "NUM_BUCKETS",
    "NUM_SIDE_BUCKETS",
    "NUM_SPATIAL_BUCKETS",
    "TokenGrid",
    "bucket_table",
    "piecewise_index",
    "rpe_attention",
    "side_buckets",
    "subset_buckets",
]
