"""`deploy` of a detector: a checkpoint in its training form becomes what a deployment runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.deploy import ExportError, ReparameterizationError, layouts_of
from xvolution.models.detect_deploy import deploy_detector
from xvolution.models.detect_export import export_detector
from xvolution.models.detect_match import Agreement, match_detections
from xvolution.training.checkpoint import HEADER, load_detector, save_weights
from xvolution.training.errors import InputError, RunError
from xvolution.training.files import write_text
from xvolution.training.metadata import DetectorMetadata
from xvolution.training.pictures import read_image

DETECTOR_ENDINGS = (".safetensors", ".onnx", ".xml")


@dataclass
class DetectorDeployment:
    """What a deployment of a detector wrote.

    Attributes:
        model: the deployed detector, in eval mode.
        metadata: of the deployed form.
        agreement: of what both forms find on the example image.
        files: what was written.
        reports: the ``DetectorExport`` of each exported file.
    """

    model: nn.Module
    metadata: DetectorMetadata
    agreement: Agreement
    files: list[Path] = field(default_factory=list)
    reports: list[Any] = field(default_factory=list)

    def __str__(self) -> str:
        layouts = ", ".join(sorted(set(self.metadata.layouts.values()))) or "no X-volution in it"
        lines = [f"deployed ({layouts}); {self.agreement}", *(f"wrote {path}" for path in self.files)]
        for report in self.reports:
            if report.content == "pyramid":
                lines.append(f"{report.path} holds backbone and pyramid alone: {report.reason}")
            else:
                lines.append(f"{report.path} on two sizes of the example: {report.agreement}")
        return "\n".join(lines)


def deploy_detector_file(
    checkpoint: str | os.PathLike[str],
    outputs: Sequence[str | os.PathLike[str]],
    *,
    layout: str = "auto",
    fold_norms: bool = False,
    image: str | os.PathLike[str] | None = None,
) -> DetectorDeployment:
    """Re-parameterize a detector's checkpoint and write it.

    Args:
        checkpoint: a .ckpt or .safetensors file in training form.
        outputs: files; .safetensors holds the deployed form's weights, .onnx and .xml are exports that were run and compared.
        layout: auto, single or split.
        fold_norms: fold the other convolution and norm pairs too.
        image: file of the example, whose detections are compared; noise by default.

    Raises:
        InputError: the checkpoint cannot be read, is deployed already, or an ending is unknown.
        RunError: the deployed form differs from the training form, or a file cannot be written.
    """
    paths = [Path(output) for output in outputs]
    for path in paths:
        if path.suffix not in DETECTOR_ENDINGS:
            raise InputError(
                f"{path} ends with {path.suffix or 'nothing'}; the endings for a detector are {', '.join(DETECTOR_ENDINGS)}."
            )
    model, metadata = load_detector(checkpoint)
    if metadata.form == "deployed":
        raise InputError(f"{checkpoint} is in its deployed form already; give the checkpoint of the training form.")
    example = _noise(metadata) if image is None else read_image(Path(image))
    try:
        deployed = deploy_detector(model, [example], layout, fold_norms)
    except ReparameterizationError as error:
        raise RunError(str(error)) from error
    except ValueError as error:
        raise InputError(str(error)) from error
    with torch.inference_mode():
        agreement = match_detections(model([example]), deployed([example]))
    form = replace(metadata, form="deployed", layouts=dict(layouts_of(deployed)), fold_norms=fold_norms)
    result = DetectorDeployment(deployed, form, agreement)
    for path in paths:
        _write(path, result, example)
    return result


def _write(path: Path, result: DetectorDeployment, example: Tensor) -> None:
    if path.suffix == ".safetensors":
        save_weights(path, result.model, result.metadata)
    else:
        try:
            header = {HEADER: result.metadata.to_json()}
            result.reports.append(export_detector(result.model, path, example, properties=header))
        except (ExportError, OSError) as error:
            raise RunError(f"{path} was not written: {error}") from error
        if path.suffix == ".xml":
            write_text(path.with_suffix(".xml.json"), result.metadata.to_json() + "\n")
    result.files.append(path)


def _noise(metadata: DetectorMetadata) -> Tensor:
    side = metadata.model.min_size
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
