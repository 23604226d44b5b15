"""The deployed form of a detector."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from xvolution.deploy.measure import LayoutChoice, choose_layouts
from xvolution.deploy.reparameterize import layouts_of
from xvolution.models.detect_deploy import deploy_detector
from xvolution.models.detect_export import DetectorExport, export_detector
from xvolution.models.detect_match import Agreement
from xvolution.models.detect_raw import agreement_of
from xvolution.training.data.reading import require_max_pixels
from xvolution.training.deployment import DeployedForm, DeployResult, DeploySettings, deployed_forms
from xvolution.training.detection.metadata import DetectorMetadata
from xvolution.training.detection.pictures import read_image
from xvolution.training.metadata import HEADER


@dataclass
class DetectorDeployment(DeployResult[Agreement]):
    """`DeployResult` of a detector."""

    @property
    def agreement(self) -> Agreement:
        """Agreement of the detections of training form and first deployed form on the example image."""
        return next(iter(self.forms.values())).compared

    @property
    def compared(self) -> str:
        return str(self.agreement)

    def export(self, form: DeployedForm[Agreement], path: Path) -> DetectorExport:
        return export_detector(form.model, path, self.example, properties={HEADER: form.metadata.to_json()})

    def notes(self) -> list[str]:
        said = [
            f"{report.path} holds only backbone and pyramid: {report.reason}"
            if report.content == "pyramid"
            else f"{report.path} on two sizes of the example: {report.agreement}"
            for report in self.reports
        ]
        if self.agreement.is_empty:
            said.append("give --image FILE, a picture with objects, to compare detections")
        return said


def deploy_trained(
    model: nn.Module,
    metadata: DetectorMetadata,
    settings: DeploySettings,
    *,
    image: str | os.PathLike[str] | None = None,
    max_pixels: int | None = None,
) -> DetectorDeployment:
    """`xvolution.training.deploy` of a detector in its training form, in eval mode; nothing is written yet."""
    require_max_pixels(max_pixels)
    example = metadata.example_image() if image is None else read_image(Path(image), max_pixels)

    def choose(runtime: str) -> LayoutChoice:
        return choose_layouts(model, ([example],), runtime, settings.threads, settings.progress)

    def build(layout: str | Mapping[str, str]) -> DeployedForm[Agreement]:
        deployed = deploy_detector(model, [example], layout, settings.fold_norms)
        agreement = agreement_of(model, deployed, example)
        form = replace(metadata, form="deployed", layouts=layouts_of(deployed), fold_norms=settings.fold_norms)
        return DeployedForm(deployed, form, agreement)

    return DetectorDeployment(deployed_forms(settings, choose, build), example)
