"""The tasks detect and segment: boxes, or boxes and masks, of the objects in each image. They need pycocotools."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xvolution.training.config import DetectionConfig
from xvolution.training.tasks.base import Option, Task

if TYPE_CHECKING:
    from torch import nn

    from xvolution.training.deployment import DeploySettings
    from xvolution.training.detection.deploy import DetectorDeployment
    from xvolution.training.detection.evaluate import DetectionEvaluation
    from xvolution.training.detection.metadata import DetectorMetadata
    from xvolution.training.detection.onnx_detector import OnnxDetector
    from xvolution.training.evaluation import EvaluationSettings
    from xvolution.training.fit import TrainResult


class Detect(Task[DetectionConfig, "DetectorMetadata"]):
    """See `Task`.

    Args:
        name: detect for boxes, segment for boxes and masks.
    """

    options = {  # noqa: RUF012 - Task declares it
        "evaluate": (
            Option("results", str, "JSON file for the detections in COCO's submission format."),
            Option("page", str, "HTML file with pictures, the truth beside what was found."),
            Option("pictures", int, "how many pictures are on the page; 24 by default."),
        ),
        "deploy": (
            Option("image", str, "a picture whose detections are compared; noise by default."),
            Option("max_pixels", int, "the most pixels that the example may have; 178956970 by default."),
        ),
    }
    endings = (".safetensors", ".onnx", ".xml")
    evaluation_batch = 1

    def __init__(self, name: Literal["detect", "segment"]) -> None:
        self.name: Literal["detect", "segment"] = name

    def defaults(self) -> DetectionConfig:
        return DetectionConfig(task=self.name)

    @property
    def metadata(self) -> type[DetectorMetadata]:
        from xvolution.training.detection.metadata import DetectorMetadata

        return DetectorMetadata

    def recognizes(self, header: Mapping[str, Any]) -> bool:
        if not super().recognizes(header):
            return False
        return (header["model"].get("architecture") == "maskrcnn") == (self.name == "segment")

    def build(self, metadata: DetectorMetadata) -> nn.Module:
        from xvolution.models.detect_deploy import deploy_detector
        from xvolution.models.detection import build_detector

        model = build_detector(metadata.model).eval()
        if metadata.form != "deployed":
            return model
        return deploy_detector(model, layout=metadata.layouts, fold_norms=metadata.fold_norms, inplace=True)

    def onnx_network(self, path: str | os.PathLike[str], checksum: bool = True) -> OnnxDetector:
        from xvolution.training.detection.onnx_detector import OnnxDetector

        return OnnxDetector(path, checksum)

    def train(self, config: DetectionConfig) -> TrainResult:
        from xvolution.training.detection.train import train_detector

        return train_detector(config)

    def figures(self, metrics: Mapping[str, float]) -> str:
        from xvolution.training.coco.metrics import shown

        names = [name for name in ("box_ap", "box_ap50", "mask_ap", "mask_ap50") if f"val_{name}" in metrics]
        return ", ".join(f"{name.replace('_ap', ' AP')} {shown(metrics[f'val_{name}'])}" for name in names)

    def evaluate(
        self, model: nn.Module, metadata: DetectorMetadata, settings: EvaluationSettings, **options: Any
    ) -> DetectionEvaluation:
        from xvolution.training.detection.evaluate import evaluate_detector

        return evaluate_detector(model, metadata, settings, **options)

    def deploy(
        self, model: nn.Module, metadata: DetectorMetadata, settings: DeploySettings, **options: Any
    ) -> DetectorDeployment:
        from xvolution.training.detection.deploy import deploy_trained

        return deploy_trained(model, metadata, settings, **options)

    def predict(
        self,
        model: nn.Module,
        metadata: DetectorMetadata,
        images: Sequence[Path],
        folder: Path,
        score_threshold: float,
        max_pixels: int | None,
    ) -> list[Path]:
        from xvolution.training.detection.predict import draw_detections

        return draw_detections(model, metadata, images, folder, score_threshold, max_pixels)
