"""`deploy`: a checkpoint in its training form becomes what a deployment runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xvolution.deploy import ExportError, ReparameterizationError, export, layouts_of, reparameterize
from xvolution.training.checkpoint import load_model, save_weights
from xvolution.training.errors import InputError, RunError
from xvolution.training.files import write_text
from xvolution.training.metadata import Metadata

ENDINGS = (".safetensors", ".onnx", ".pt2", ".xml")


@dataclass
class DeployResult:
    """What a deployment wrote.

    Attributes:
        model: the deployed network, in eval mode.
        metadata: of the deployed form.
        difference: largest absolute difference of the logits between the two forms, on the example input.
        files: what was written.
        reports: the `ExportReport` of each exported file.
    """

    model: nn.Module
    metadata: Metadata
    difference: float
    files: list[Path] = field(default_factory=list)
    reports: list[Any] = field(default_factory=list)

    def __str__(self) -> str:
        layouts = ", ".join(sorted(set(self.metadata.layouts.values()))) or "no X-volution in it"
        lines = [f"deployed ({layouts}); largest difference of the logits {self.difference:.2e}"]
        return "\n".join([*lines, *(f"wrote {path}" for path in self.files)])


def deploy(
    checkpoint: str | os.PathLike[str],
    outputs: Sequence[str | os.PathLike[str]],
    *,
    layout: str = "auto",
    fold_norms: bool = False,
    image_size: int | None = None,
    batch_size: int = 1,
    fixed_size: bool = False,
) -> DeployResult:
    """Re-parameterize a checkpoint and write it.

    Args:
        checkpoint: a .ckpt or .safetensors file in training form.
        outputs: files; .safetensors holds the deployed form's weights, .onnx, .pt2 and .xml are exports that have been run
            and compared.
        layout: auto, single, split or grouped.
        fold_norms: fold the other convolution and norm pairs too.
        image_size: side length of the example input in pixels; by default that of training.
        batch_size: images in the example input, which `auto` measures.
        fixed_size: fix batch and image size of exported files to the example's. A branch whose kernel the image decides is one
            convolution then, and two in a file for any batch size.

    Raises:
        InputError: the checkpoint cannot be read, is deployed already, or an ending is unknown.
        RunError: the deployed form differs from the training form, or a file cannot be written.
    """
    paths = [Path(output) for output in outputs]
    for path in paths:
        if path.suffix not in ENDINGS:
            raise InputError(f"{path} ends with {path.suffix or 'nothing'}; the endings are {', '.join(ENDINGS)}.")
    model, metadata = load_model(checkpoint)
    if metadata.form == "deployed":
        raise InputError(f"{checkpoint} is in its deployed form already; give the checkpoint of the training form.")
    example = metadata.example_images(image_size, batch_size)
    try:
        deployed = reparameterize(model, example_inputs=example, layout=layout, fold_norms=fold_norms)
    except ReparameterizationError as error:
        raise RunError(str(error)) from error
    except ValueError as error:
        raise InputError(str(error)) from error
    with torch.inference_mode():
        difference = float((deployed(example) - model(example)).abs().max())
    deployed_metadata = replace(metadata, form="deployed", layouts=dict(layouts_of(deployed)), fold_norms=fold_norms)
    result = DeployResult(deployed, deployed_metadata, difference)
    for path in paths:
        _write(path, result, example, not fixed_size)
    return result


def _write(path: Path, result: DeployResult, example: torch.Tensor, dynamic: bool) -> None:
    if path.suffix == ".safetensors":
        save_weights(path, result.model, result.metadata)
    else:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            result.reports.append(export(result.model, path, example_inputs=example, dynamic=dynamic))
        except (ExportError, OSError) as error:
            raise RunError(f"{path} was not written: {error}") from error
        if path.suffix == ".onnx":
            from xvolution.training.onnx_model import write_properties

            write_properties(path, result.metadata)
        else:
            write_text(path.with_suffix(path.suffix + ".json"), result.metadata.to_json() + "\n")
    result.files.append(path)
