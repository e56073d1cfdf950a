"""Masks of instances in images of any size, in a few hundred bytes each."""

from collections.abc import Iterator, Sequence

import numpy as np
import pycocotools.mask as coco_mask
from detectron2.layers import paste_masks_in_image
from torch import Tensor


class InstanceMasks:
    """The masks of one image's instances, each kept as run lengths within its own region.

    As a field of detectron2's `Instances` it can be indexed by slices and tensors. Iterating makes
    masks of the whole image, one at a time. ``numpy.asarray`` makes all at once, (N, height,
    width), which can be large.

    Args:
        size: (height, width) of the image.
        corners: (x, y) of every region's upper left pixel.
        regions: COCO run lengths of every region.
    """

    def __init__(
        self, size: tuple[int, int], corners: Sequence[tuple[int, int]], regions: Sequence[dict]
    ):
        self.size, self._corners, self._regions = size, list(corners), list(regions)

    @classmethod
    def paste(
        cls, masks: Tensor, boxes: Tensor, size: tuple[int, int], offset: tuple[int, int] = (0, 0)
    ) -> "InstanceMasks":
        """Pastes the predictions of a mask head, as `detector_postprocess` does.

        Args:
            masks: (N, M, M) probabilities.
            boxes: (N, 4) boxes of the masks, in pixels of a tile.
            size: (height, width) of the whole image.
            offset: (x, y) of the tile's upper left pixel in the image.
        """
        corners, regions = [], []
        for mask, box in zip(masks, boxes, strict=True):
            x0, y0 = (max(int(v) - 1, 0) for v in box[:2].floor())
            right, bottom = size[1] - offset[0], size[0] - offset[1]
            x1, y1 = min(int(box[2].ceil()) + 1, right), min(int(box[3].ceil()) + 1, bottom)
            region = paste_masks_in_image(
                mask[None], (box - box.new_tensor([x0, y0, x0, y0]))[None], (y1 - y0, x1 - x0)
            )
            corners.append((x0 + offset[0], y0 + offset[1]))
            regions.append(coco_mask.encode(np.asfortranarray(region[0].numpy(), np.uint8)))
        return cls(size, corners, regions)

    def __len__(self) -> int:
        return len(self._regions)

    def __getitem__(self, item: slice | Tensor | Sequence[int]) -> "InstanceMasks":
        indices = np.arange(len(self))[item if isinstance(item, slice) else np.asarray(item)]
        return InstanceMasks(
            self.size, [self._corners[i] for i in indices], [self._regions[i] for i in indices]
        )

    def __iter__(self) -> Iterator[np.ndarray]:
        """Boolean masks of the whole image, (height, width), one at a time."""
        for x, y, region in self.regions():
            mask = np.zeros(self.size, dtype=bool)
            mask[y : y + region.shape[0], x : x + region.shape[1]] = region
            yield mask

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array([*self], dtype=dtype or bool).reshape(-1, *self.size)

    def regions(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """(x, y, mask) of every region: its upper left pixel, and (height, width) booleans."""
        for (x, y), region in zip(self._corners, self._regions, strict=True):
            yield x, y, coco_mask.decode(region).astype(bool)

    def to_rle(self) -> list[dict]:
        """COCO run lengths of the whole image, as its results format has them."""
        return [_full_rle(region, x, y, *self.size) for x, y, region in self.regions()]

    @staticmethod
    def cat(parts: Sequence["InstanceMasks"]) -> "InstanceMasks":
        """Masks of the same image in one; `Instances.cat` calls it."""
        corners = [corner for part in parts for corner in part._corners]
        return InstanceMasks(parts[0].size, corners, [r for part in parts for r in part._regions])

    def union(self) -> "InstanceMasks":
        """All masks united in one."""
        parts = list(self.regions())
        x0, y0 = min(x for x, _, _ in parts), min(y for _, y, _ in parts)
        height = max(y + mask.shape[0] for _, y, mask in parts) - y0
        width = max(x + mask.shape[1] for x, _, mask in parts) - x0
        whole = np.zeros((height, width), dtype=np.uint8, order="F")
        for x, y, mask in parts:
            whole[y - y0 : y - y0 + mask.shape[0], x - x0 : x - x0 + mask.shape[1]] |= mask
        return InstanceMasks(self.size, [(x0, y0)], [coco_mask.encode(whole)])


def _full_rle(region: np.ndarray, x: int, y: int, height: int, width: int) -> dict:
    """Run lengths of a (height, width) image that is zero outside the region at (x, y).

    COCO counts down the columns, so the runs follow from those of the region. No array of the
    image's size is made.
    """
    columns = np.pad(region.T, ((0, 0), (1, 1))).astype(np.int8)
    edges = np.diff(columns, axis=1)  # 1 where a run begins, -1 where it has ended
    column, row = np.nonzero(edges)
    places = (column + x) * height + row + y
    # a run may go on at the top of the next column: its end and the next beginning cancel out
    places, times = np.unique(places, return_counts=True)
    places = places[times == 1]
    counts = np.diff(places, prepend=0, append=height * width).tolist()
    if counts[-1] == 0:  # the mask reaches the last pixel
        counts.pop()
    rle = coco_mask.frPyObjects({"counts": counts, "size": [height, width]}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
