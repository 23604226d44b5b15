"""The deployed form of a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from xvolution.deploy.export import ExportReport, export
from xvolution.deploy.measure import LayoutChoice, choose_layouts
from xvolution.deploy.reparameterize import layouts_of, reparameterize
from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.deployment import DeployedForm, DeployResult, DeploySettings, deployed_forms
from xvolution.training.metadata import HEADER

#: What an exported file's open axes are called where all are open.
_OPEN = "batch and image size"


@dataclass
class ClassifierDeployment(DeployResult[float]):
    """`DeployResult` of a classifier.

    Attributes:
        fixed_size: whether exported files accept only batches and images of the example's size.
    """

    fixed_size: bool

    @property
    def difference(self) -> float:
        """Largest absolute difference of the logits between the training form and the deployed ones, on the example."""
        return max(form.compared for form in self.forms.values())

    @property
    def compared(self) -> str:
        return f"largest difference of the logits {self.difference:.2e}"

    def notes(self) -> list[str]:
        fixed = [report for report in self.reports if not self.fixed_size and report.dynamic != _OPEN]
        unseen = [report for report in self.reports if report.not_run]
        return [
            *(f"{each.path} takes images of the example's size only: {each.reason}" for each in fixed),
            *(f"{each.path} was read back and checked, and not run: {each.not_run}" for each in unseen),
        ]

    def export(self, form: DeployedForm[float], path: Path) -> ExportReport:
        return export(
            form.model,
            path,
            example_inputs=self.example,
            dynamic=not self.fixed_size,
            input_names=["images"],
            output_names=["logits"],
            properties={HEADER: form.metadata.to_json()},
        )


def deploy_classifier(
    model: nn.Module,
    metadata: ClassifierMetadata,
    settings: DeploySettings,
    *,
    image_size: int | None = None,
    batch_size: int = 1,
    fixed_size: bool = False,
) -> ClassifierDeployment:
    """`xvolution.training.deploy` of a classifier in its training form, in eval mode; nothing is written yet."""
    example = metadata.example_images(image_size, batch_size)
    metadata = replace(metadata, preprocessing=metadata.preprocessing.resized(image_size))

    def choose(runtime: str) -> LayoutChoice:
        return choose_layouts(model, example, runtime, settings.threads, settings.progress)

    def build(layout: str | Mapping[str, str]) -> DeployedForm[float]:
        fold_norms = settings.fold_norms
        deployed = reparameterize(model, example_inputs=example, layout=layout, fold_norms=fold_norms)
        with torch.inference_mode():
            difference = float((deployed(example) - model(example)).abs().max())
        form = replace(metadata, form="deployed", layouts=layouts_of(deployed), fold_norms=fold_norms)
        return DeployedForm(deployed, form, difference)

    return ClassifierDeployment(deployed_forms(settings, choose, build), example, fixed_size)
