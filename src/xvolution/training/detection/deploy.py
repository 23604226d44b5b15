"""The deployed form of a detector."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from xvolution.deploy.reparameterize import layouts_of
from xvolution.models.detect_deploy import deploy_detector
from xvolution.models.detect_export import DetectorExport, export_detector
from xvolution.models.detect_match import Agreement, match_detections
from xvolution.training.deployment import DeployResult, reparameterizing
from xvolution.training.detection.metadata import DetectorMetadata
from xvolution.training.detection.pictures import read_image
from xvolution.training.metadata import HEADER


@dataclass
class DetectorDeployment(DeployResult):
    """`DeployResult` of a detector.

    Attributes:
        agreement: of what both forms find on the example image.
    """

    agreement: Agreement

    @property
    def compared(self) -> str:
        return str(self.agreement)

    def export(self, path: Path) -> DetectorExport:
        return export_detector(self.model, path, self.example, properties={HEADER: self.metadata.to_json()})

    def notes(self) -> list[str]:
        return [
            f"{report.path} holds backbone and pyramid alone: {report.reason}"
            if report.content == "pyramid"
            else f"{report.path} on two sizes of the example: {report.agreement}"
            for report in self.reports
        ]


def deploy_trained(
    model: nn.Module,
    metadata: DetectorMetadata,
    layout: str,
    fold_norms: bool,
    *,
    image: str | os.PathLike[str] | None = None,
) -> DetectorDeployment:
    """`xvolution.training.deploy` of a detector in its training form, in eval mode; nothing is written yet."""
    example = metadata.example_image() if image is None else read_image(Path(image))
    with reparameterizing():
        deployed = deploy_detector(model, [example], layout, fold_norms)
    with torch.inference_mode():
        agreement = match_detections(model([example]), deployed([example]))
    form = replace(metadata, form="deployed", layouts=dict(layouts_of(deployed)), fold_norms=fold_norms)
    return DetectorDeployment(deployed, form, example, agreement)
