"""What the Triton kernels for iRPE attention share: 1-D buckets of distances, in registers.

The table is packed into one integer, which is cheaper than a chain of comparisons. Distances beyond
+-REACH share the outermost buckets, so nine entries of three bits are enough.
"""

import triton
import triton.language as tl

from ..buckets import CLS_BUCKET, NUM_SIDE_BUCKETS, distance_buckets, piecewise_index

_REACH = 4  # from this distance on, the bucket stays the same
_SIDE = NUM_SIDE_BUCKETS // 2
_BY_DISTANCE = distance_buckets(_REACH)
assert (
    _BY_DISTANCE[0] == 0 and _BY_DISTANCE[-1] == 2 * _SIDE and piecewise_index(_REACH - 1) < _SIDE
)

REACH = tl.constexpr(_REACH)
# For float32 products. "tf32x3" is faster, but faults on an H100 with head_dim 80 and 128 (Triton
# 3.6).
PRECISION = tl.constexpr("ieee")
CLS_COLUMN = tl.constexpr(CLS_BUCKET)
BUCKETS = tl.constexpr(sum(b << (3 * i) for i, b in enumerate(_BY_DISTANCE)))


@triton.jit
def bucket_of(distance):
    """1-D bucket, 0 .. 6, of a signed distance in patches."""
    entry = tl.minimum(tl.maximum(distance, -REACH), REACH) + REACH
    return (tl.full(entry.shape, BUCKETS, tl.int32) >> (3 * entry)) & 7
