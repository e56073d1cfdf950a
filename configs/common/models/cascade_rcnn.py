"""Turns the Mask R-CNN into ViTDet's Cascade Mask R-CNN: three box heads of rising IoU."""

from detectron2.config import LazyCall as L
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import CascadeROIHeads

# For each stage: the IoU from which a proposal is an object, and the weights of the box offsets.
STAGES = ((0.5, (10, 10, 5, 5)), (0.6, (20, 20, 10, 10)), (0.7, (30, 30, 15, 15)))


def cascade(model):
    """Replaces the box head of a LazyConfig Mask R-CNN in place; every stage is built like it."""
    heads = model.roi_heads
    box_head, box_predictor = heads.pop("box_head"), heads.pop("box_predictor")
    del heads.proposal_matcher, box_predictor.num_classes
    heads._target_ = CascadeROIHeads
    heads.box_heads = [box_head for _ in STAGES]
    heads.box_predictors = [
        {
            **box_predictor,
            "box2box_transform": L(Box2BoxTransform)(weights=weights),
            "cls_agnostic_bbox_reg": True,
            "num_classes": "${...num_classes}",
        }
        for _, weights in STAGES
    ]
    heads.proposal_matchers = [
        L(Matcher)(thresholds=[iou], labels=[0, 1], allow_low_quality_matches=False)
        for iou, _ in STAGES
    ]
