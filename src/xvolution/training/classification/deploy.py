"""The deployed form of a classifier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from xvolution.deploy.export import ExportReport, export
from xvolution.deploy.reparameterize import layouts_of, reparameterize
from xvolution.deploy.runtimes.onnx_files import write_properties
from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.deployment import DeployResult, reparameterizing
from xvolution.training.metadata import HEADER


@dataclass
class ClassifierDeployment(DeployResult):
    """`DeployResult` of a classifier.

    Attributes:
        difference: largest absolute difference of the logits between the two forms, on the example.
        fixed_size: whether exported files take batches and images of the example's size alone.
    """

    difference: float
    fixed_size: bool

    @property
    def compared(self) -> str:
        return f"largest difference of the logits {self.difference:.2e}"

    def export(self, path: Path) -> ExportReport:
        report = export(self.model, path, example_inputs=self.example, dynamic=not self.fixed_size)
        if path.suffix == ".onnx":
            write_properties(path, {HEADER: self.metadata.to_json()})
        return report


def deploy_classifier(
    model: nn.Module,
    metadata: ClassifierMetadata,
    layout: str,
    fold_norms: bool,
    *,
    image_size: int | None = None,
    batch_size: int = 1,
    fixed_size: bool = False,
) -> ClassifierDeployment:
    """`xvolution.training.deploy` of a classifier in its training form, in eval mode; nothing is written yet."""
    example = metadata.example_images(image_size, batch_size)
    with reparameterizing():
        deployed = reparameterize(model, example_inputs=example, layout=layout, fold_norms=fold_norms)
    with torch.inference_mode():
        difference = float((deployed(example) - model(example)).abs().max())
    form = replace(metadata, form="deployed", layouts=dict(layouts_of(deployed)), fold_norms=fold_norms)
    return ClassifierDeployment(deployed, form, example, difference, fixed_size)
