"""The task classify: one class for each image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xvolution.training.config import TrainConfig
from xvolution.training.errors import InputError
from xvolution.training.tasks.base import Option, Task

if TYPE_CHECKING:
    from torch import nn

    from xvolution.deploy.runtimes import LoadedFile, Runtime
    from xvolution.training.classification.deploy import ClassifierDeployment
    from xvolution.training.classification.evaluate import EvaluationResult
    from xvolution.training.classification.exported_classifier import ExportedClassifier
    from xvolution.training.classification.metadata import ClassifierMetadata
    from xvolution.training.classification.predict import ClassifierPredictions, ClassifierPredictor
    from xvolution.training.deployment import DeploySettings
    from xvolution.training.evaluation import EvaluationSettings
    from xvolution.training.fit import TrainResult
    from xvolution.training.predictor import PredictSettings

IMAGE_SIZE = Option("image_size", int, "side length of the network's input in pixels; by default that of training.")


class Classify(Task[TrainConfig, "ClassifierMetadata"]):
    """See `Task`."""

    name = "classify"
    options = {  # noqa: RUF012 - Task declares it
        "evaluate": (IMAGE_SIZE, Option("predictions", str, "CSV file for the predictions of all images.")),
        "deploy": (
            IMAGE_SIZE,
            Option("batch_size", int, "number of images in the batch that is timed and compared; 1 by default."),
            Option(
                "fixed_size",
                bool,
                "fix batch and image size in exported files, so that a kernel computed for each image merges too.",
            ),
        ),
        "predict": (
            Option("top", int, "number of most probable classes to report for each picture; 5 by default."),
            Option("csv", str, "CSV file with a row for each picture and class."),
            Option("json", str, "JSON file with an object for each picture."),
            Option("page", str, "HTML file with the pictures and their classes."),
            Option("pictures_on_page", int, "number of pictures on the page; 100 by default."),
        ),
    }
    endings = (
        ".safetensors",
        ".onnx",
        ".pt2",
        ".xml",
        ".ncnn.param",
        ".mnn",
        ".pte",
        ".tflite",
        ".mlpackage",
        ".tensorrt.onnx",
    )
    evaluation_batch = 64

    def defaults(self) -> TrainConfig:
        return TrainConfig()

    @property
    def metadata(self) -> type[ClassifierMetadata]:
        from xvolution.training.classification.metadata import ClassifierMetadata

        return ClassifierMetadata

    def build(self, metadata: ClassifierMetadata) -> nn.Module:
        from xvolution.deploy.collapse import settle
        from xvolution.deploy.reparameterize import reparameterize
        from xvolution.models import build_model

        model, fold_norms = build_model(metadata.model).eval(), metadata.fold_norms
        if metadata.form != "deployed":
            return model
        for name, layout in metadata.layouts.items():
            if layout == "conv":  # its gate is constant, which random weights are not
                settle(model.get_submodule(name))
        # Which norms follow which convolutions is found, and checked, by running an example.
        example = metadata.example_images() if fold_norms else None
        return reparameterize(model, example, layout=metadata.layouts, fold_norms=fold_norms, inplace=True)

    def exported_network(
        self, path: str | os.PathLike[str], runtime: Runtime[LoadedFile], checksum: bool = True
    ) -> ExportedClassifier:
        from xvolution.training.classification.exported_classifier import ExportedClassifier

        return ExportedClassifier(path, runtime, checksum)

    def train(self, config: TrainConfig) -> TrainResult:
        from xvolution.training.classification.train import train_classifier

        if config.teacher is None:
            return train_classifier(config)
        if Path(config.teacher).suffix == ".onnx":
            raise InputError(f"--teacher is {config.teacher}; give a .ckpt or a .safetensors file of a classifier.")
        return train_classifier(config, self.load(config.teacher))

    def figures(self, metrics: Mapping[str, float]) -> str:
        return f"top-1 {metrics['val_top1']:.2%}, top-5 {metrics['val_top5']:.2%}, loss {metrics['val_loss']:.4f}"

    def evaluate(
        self, model: nn.Module, metadata: ClassifierMetadata, settings: EvaluationSettings, **options: Any
    ) -> EvaluationResult:
        from xvolution.training.classification.evaluate import evaluate_classifier

        return evaluate_classifier(model, metadata, settings, **options)

    def deploy(
        self, model: nn.Module, metadata: ClassifierMetadata, settings: DeploySettings, **options: Any
    ) -> ClassifierDeployment:
        from xvolution.training.classification.deploy import deploy_classifier

        return deploy_classifier(model, metadata, settings, **options)

    def predictor(
        self, model: nn.Module, metadata: ClassifierMetadata, max_pixels: int | None = None
    ) -> ClassifierPredictor:
        from xvolution.training.classification.predict import ClassifierPredictor

        return ClassifierPredictor(model, metadata, max_pixels)

    def predict(
        self, predictor: Any, pictures: Sequence[Path], settings: PredictSettings, **options: Any
    ) -> ClassifierPredictions:
        from xvolution.training.classification.predict import predict_classes

        return predict_classes(predictor, pictures, settings, **options)
