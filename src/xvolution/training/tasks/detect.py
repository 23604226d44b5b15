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

    from xvolution.deploy.runtimes import LoadedFile, Runtime
    from xvolution.training.deployment import DeploySettings
    from xvolution.training.detection.deploy import DetectorDeployment
    from xvolution.training.detection.evaluate import DetectionEvaluation
    from xvolution.training.detection.exported_detector import ExportedDetector
    from xvolution.training.detection.metadata import DetectorMetadata
    from xvolution.training.detection.predict import DetectorPredictions, DetectorPredictor
    from xvolution.training.evaluation import EvaluationSettings
    from xvolution.training.fit import TrainResult
    from xvolution.training.predictor import PredictSettings


class Detect(Task[DetectionConfig, "DetectorMetadata"]):
    """See `Task`.

    Args:
        name: detect for boxes, segment for boxes and masks.
    """

    options = {  # noqa: RUF012 - Task declares it
        "evaluate": (
            Option("results", str, "JSON file for the detections in COCO's submission format."),
            Option("page", str, "HTML file with pictures, showing annotations and detections."),
            Option("pictures", int, "number of pictures on the page; 24 by default."),
        ),
        "deploy": (
            Option("image", str, "picture on which detections are compared; noise by default."),
            Option("max_pixels", int, "largest number of pixels in the picture; 178956970 by default."),
        ),
        "predict": (
            Option("output", str, "folder for the drawn pictures and results.json; predictions by default."),
            Option("score_threshold", float, "lowest score of a detection that is kept, from 0 to 1; 0.5 by default."),
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

    def exported_network(
        self, path: str | os.PathLike[str], runtime: Runtime[LoadedFile], checksum: bool = True
    ) -> ExportedDetector:
        from xvolution.training.detection.exported_detector import ExportedDetector

        return ExportedDetector(path, runtime, checksum)

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

    def predictor(
        self, model: nn.Module, metadata: DetectorMetadata, max_pixels: int | None = None
    ) -> DetectorPredictor:
        from xvolution.training.detection.predict import DetectorPredictor

        return DetectorPredictor(model, metadata, max_pixels)

    def predict(
        self, predictor: Any, pictures: Sequence[Path], settings: PredictSettings, **options: Any
    ) -> DetectorPredictions:
        from xvolution.training.detection.predict import draw_detections

        return draw_detections(predictor, pictures, settings, **options)
