"""Floating-point operations of a detector; some heads run once for each region that it finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from xvolution.conversion.summary import count_flops


@dataclass(frozen=True)
class DetectorFlops:
    """The floating-point operations of a detector for one image.

    Attributes:
        flops: floating-point operations, a multiply-add being two.
        pixels: height and width of the image, as the backbone sees it.
        masks: regions that the mask head is counted with; 0 where it is left out.
    """

    flops: int
    pixels: tuple[int, int]
    masks: int


def count_detector_flops(detector: Any, mask_head: bool = False) -> DetectorFlops:
    """Count convolutions and matrix products for a square image whose side is the detector's shorter side.

    Backbone, pyramid and the heads that read the whole image (proposals, or one-stage detectors) have the same cost for every
    image. The heads of regions depend on the number of regions and are not counted; nor are resizing, suppression and pasting.

    Args:
        detector: of torchvision's interface, in eval mode.
        mask_head: count the mask head as well, with the most regions that the detector takes.
    """
    side = int(detector.transform.min_size[-1])
    image = next(detector.parameters()).new_zeros(3, side, side)
    with torch.no_grad():
        batch = detector.transform([image])[0].tensors
        features = list(detector.backbone(batch).values())
    dense = detector.rpn.head if hasattr(detector, "rpn") else detector.head
    flops = (count_flops(detector.backbone, batch) or 0) + (count_flops(dense, (features,)) or 0)
    masks = 0
    if mask_head:
        heads, masks = detector.roi_heads, detector.roi_heads.detections_per_img
        region = features[0].new_zeros(1, features[0].shape[1], *heads.mask_roi_pool.output_size)
        flops += masks * (count_flops(nn.Sequential(heads.mask_head, heads.mask_predictor), region) or 0)
    return DetectorFlops(flops, (batch.shape[-2], batch.shape[-1]), masks)
