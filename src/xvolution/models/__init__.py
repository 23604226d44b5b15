"""Converted networks of timm; `import xvolution.models` registers `xvolution_resnet18/34/50/101` with timm."""

from xvolution.models.cell_centroid_former import (
    CellCentroidFormer,
    CentroidMaps,
    Detections,
    centroid_loss,
    centroid_targets,
    decode,
)
from xvolution.models.factory import ModelError, ModelSpec, build_model, shrink_stem
from xvolution.models.resnet import xvolution_resnet18, xvolution_resnet34, xvolution_resnet50, xvolution_resnet101

__all__ = [
    "CellCentroidFormer",
    "CentroidMaps",
    "Detections",
    "ModelError",
    "ModelSpec",
    "build_model",
    "centroid_loss",
    "centroid_targets",
    "decode",
    "shrink_stem",
    "xvolution_resnet18",
    "xvolution_resnet34",
    "xvolution_resnet50",
    "xvolution_resnet101",
]
