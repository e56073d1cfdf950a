"""detectron2's mapper with images opened as pretraining opens them."""

import copy

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import (
    SizeMismatchError,
    annotations_to_instances,
    check_image_size,
)

from ..errors import UserError
from .images import load_box, load_image
from .tiles.tiled_dataset import cut_annotations


class RGBDatasetMapper(DatasetMapper):
    """`DatasetMapper` for RGB models whose images are opened by `load_image`.

    detectron2's own mapper turns 16-bit images white and float images black, and drops alpha. The
    detector would see other images than its backbone in pretraining. Of an entry of `Tiles`, only
    the tile is read. Arguments are those of the base class; ``image_format`` must be RGB.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        if "tile" in dataset_dict:
            left, top, right, bottom = dataset_dict["tile"]
            box = top, left, bottom - top, right - left
            image = load_box(dataset_dict["file_name"], lambda *_: box, box[2:])
            annotations = list(cut_annotations(dataset_dict)) if self.is_train else []
            dataset_dict = dataset_dict | {"annotations": annotations}
        else:
            dataset_dict = copy.deepcopy(dataset_dict)  # it is changed below
            image = np.asarray(load_image(dataset_dict["file_name"]))  # (height, width, 3)
        try:
            check_image_size(dataset_dict, image)
        except SizeMismatchError as error:
            raise UserError(f"{error}; correct the entry in the annotations") from None
        augmented = T.AugInput(image)
        try:
            transforms = self.augmentations(augmented)
        except ValueError as error:  # the image is so narrow that a side becomes 0 pixels
            raise UserError(
                f"{dataset_dict['file_name']} of {image.shape[1]} x {image.shape[0]} pixels cannot "
                f"be resized as the config says ({error}); cut it into shorter pieces"
            ) from None
        image = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))  # (3, height, width)
        dataset_dict["image"] = torch.as_tensor(image)
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image.shape[1:])
        return dataset_dict

    def _transform_annotations(self, dataset_dict: dict, transforms, image_shape) -> None:
        if any(not entry.get("iscrowd", 0) for entry in dataset_dict["annotations"]):
            return super()._transform_annotations(dataset_dict, transforms, image_shape)
        # The base class takes boxes from masks, but crowd regions alone leave no masks.
        del dataset_dict["annotations"]
        dataset_dict["instances"] = annotations_to_instances([], image_shape)
