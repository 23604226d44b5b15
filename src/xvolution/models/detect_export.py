"""Writing a whole detector for other runtimes, with proposals and suppression in the graph; or its pyramid alone."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.deploy import ExportError, export
from xvolution.models.detect_match import Agreement, match_detections

#: Outputs of an exported detector; ``masks`` where there are any.
OUTPUTS = ("boxes", "labels", "scores", "masks")

# The operators that torchvision's boxes, NMS and RoIAlign need are complete from here on.
_OPSET = 17

Finder = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class DetectorExport:
    """What was written.

    Attributes:
        path: the file.
        format: ``"onnx"`` or ``"xml"``.
        content: ``"detector"``: one image (3, H, W) in [0, 1] to ``boxes``, ``labels``, ``scores`` and ``masks``; or
            ``"pyramid"``: normalized images (N, 3, H, W) to the levels of the feature pyramid.
        dynamic: which axes of the input are open: ``"image size"`` of a detector.
        agreement: how the detections compare with the model's; None for a pyramid, whose features were compared.
        reason: why it is not the whole detector; empty when it is.
    """

    path: Path
    format: str
    content: str
    dynamic: str
    agreement: Agreement | None
    reason: str = ""


def export_detector(
    detector: nn.Module,
    path: str | os.PathLike[str],
    image: Tensor,
    *,
    score_threshold: float = 0.05,
    whole: bool = True,
    properties: dict[str, str] | None = None,
) -> DetectorExport:
    """Write a detector, run the file, and compare its detections with the model's on two images of different size.

    The graph takes one image of any size and holds everything from resizing to suppression, in standard operators; it is made by
    torch's tracing exporter, which torchvision supports. Nothing is left behind when the detections differ.

    Args:
        detector: in eval mode, on the CPU in fp32, usually from ``deploy_detector``.
        path: ends in ``.onnx`` or ``.xml`` (OpenVINO, through ONNX).
        image: (3, H, W) in [0, 1].
        score_threshold: detections above it must agree.
        whole: write the whole detector; False writes the backbone and the feature pyramid alone, for runtimes without NMS.
        properties: strings to put into an ONNX file's metadata; ``content`` is always put there.

    Returns:
        The report. Where the exporter or the runtime cannot take the whole detector, the pyramid is written; ``content`` and
        ``reason`` say so.

    Raises:
        ValueError: an unknown ending, or an image of another shape.
        ExportError: train mode, or a file that computes something else than the model.
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".xml"):
        raise ValueError(f"cannot export a detector to {path.name!r}; the name must end in .onnx or .xml")
    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"the example image has the shape {tuple(image.shape)}; it must be (3, H, W)")
    if any(module.training for module in detector.modules()):
        raise ExportError("the detector is in train mode; call detector.eval() before exporting it")
    reason = "asked for" if not whole else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    if whole:
        try:
            return _export_whole(detector, path, image, score_threshold, properties or {})
        except _CannotExport as error:
            reason = str(error)
    return _export_pyramid(detector, path, image, reason, properties or {})


class _CannotExport(Exception):
    """An exporter or a runtime does not know an operator of the whole detector."""


def _export_whole(
    detector: nn.Module, path: Path, image: Tensor, threshold: float, properties: dict[str, str]
) -> DetectorExport:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        onnx_path = Path(folder) / path.with_suffix(".onnx").name
        names = _trace(detector, image, onnx_path)
        _write_properties(onnx_path, {**properties, "content": "detector"})
        find = _RUNNERS[path.suffix](onnx_path, names)
        agreement = _agree(detector, find, image, threshold)
        if not agreement.holds():
            raise ExportError(f"{path.name} finds something else than the detector: {agreement}; nothing was written")
        if path.suffix == ".xml":
            onnx_path.unlink()
        for written in sorted(Path(folder).iterdir()):
            os.replace(written, path.parent / written.name)
    return DetectorExport(path, path.suffix[1:], "detector", "image size", agreement)


def _trace(detector: nn.Module, image: Tensor, path: Path) -> list[str]:
    """Write the ONNX file; names of its outputs in their order."""
    with torch.no_grad():
        found = detector([image])[0]
    names = list(found)
    sizes = {"image": {1: "height", 2: "width"}, **{name: {0: "detections"} for name in names}}
    if "masks" in names:
        sizes["masks"] = {0: "detections", 2: "height", 3: "width"}
    try:
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                detector,
                ([image],),
                str(path),
                dynamo=False,
                opset_version=_OPSET,
                input_names=["image"],
                output_names=names,
                dynamic_axes=sizes,
            )
    except Exception as error:  # the exporter raises errors of many kinds
        raise _CannotExport(f"torch's exporter cannot write the whole detector: {_first_line(error)}") from error
    return names


def _agree(detector: nn.Module, find: Finder, image: Tensor, threshold: float) -> Agreement:
    # Another shape, and another orientation, than the one that was traced.
    other = torch.nn.functional.interpolate(image[None], (image.shape[2] + 16, image.shape[1]), mode="bilinear")[0]
    trials = [image, other]
    with torch.no_grad():
        expected = [detector([trial])[0] for trial in trials]
    try:
        actual = [find(trial) for trial in trials]
    except Exception as error:  # runtimes raise errors of their own classes
        raise _CannotExport(f"the runtime cannot run the whole detector: {_first_line(error)}") from error
    return match_detections(expected, actual, threshold)


def _run_onnx(path: Path, names: Sequence[str]) -> Finder:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a class of its own for each status code
        raise _CannotExport(f"ONNX Runtime cannot open the whole detector: {_first_line(error)}") from error

    def find(image: Tensor) -> dict[str, Tensor]:
        outputs = session.run(list(names), {"image": image.numpy()})
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

    return find


def _run_openvino(path: Path, names: Sequence[str]) -> Finder:
    import openvino

    try:
        model = openvino.convert_model(path)
        openvino.save_model(model, path.with_suffix(".xml"), compress_to_fp16=False)
        # Some processors run OpenVINO in bf16 by default, which would be compared here instead of the graph.
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(path.with_suffix(".xml"), "CPU", options)
    except Exception as error:  # conversion and compilation raise errors of many kinds
        raise _CannotExport(f"OpenVINO cannot take the whole detector: {_first_line(error)}") from error

    def find(image: Tensor) -> dict[str, Tensor]:
        outputs = compiled([image.numpy()])
        return {name: torch.from_numpy(outputs[name].copy()) for name in names}

    return find


_RUNNERS: dict[str, Callable[[Path, Sequence[str]], Finder]] = {".onnx": _run_onnx, ".xml": _run_openvino}


def _export_pyramid(
    detector: Any, path: Path, image: Tensor, reason: str, properties: dict[str, str]
) -> DetectorExport:
    images, _ = detector.transform([image])
    report = export(detector.backbone, path, images.tensors)
    if path.suffix == ".onnx":
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            temporary = Path(folder) / path.name
            temporary.write_bytes(path.read_bytes())
            _write_properties(temporary, {**properties, "content": "pyramid", "reason": reason})
            os.replace(temporary, path)
    return DetectorExport(path, path.suffix[1:], "pyramid", report.dynamic, None, reason)


def _write_properties(path: Path, properties: dict[str, str]) -> None:
    import onnx

    network = onnx.load(os.fspath(path))
    onnx.helper.set_model_props(network, properties)
    onnx.save(network, os.fspath(path))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
