"""Image relative position encoding (iRPE) and attention with it.

`buckets` says which row of the table a pair of tokens reads, `dense` is the literal formula,
`fused` the Triton kernels, and `dispatch` chooses between them.
"""

from .buckets import (
    CLS_BUCKET,
    IRPE,
    NUM_BUCKETS,
    NUM_SIDE_BUCKETS,
    NUM_SPATIAL_BUCKETS,
    TokenGrid,
    bucket_table,
    distance_buckets,
    piecewise_index,
    side_buckets,
    subset_buckets,
)
from .dispatch import BACKENDS, rpe_attention

__all__ = [
    "BACKENDS",
    "CLS_BUCKET",
    "IRPE",
    "NUM_BUCKETS",
    "NUM_SIDE_BUCKETS",
    "NUM_SPATIAL_BUCKETS",
    "TokenGrid",
    "bucket_table",
    "distance_buckets",
    "piecewise_index",
    "rpe_attention",
    "side_buckets",
    "subset_buckets",
]
