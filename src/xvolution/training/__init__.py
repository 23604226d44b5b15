"""Training, evaluation and deployment, `train`, `evaluate`, `deploy`, of image classifiers and detectors.

The names are imported when they are used, so that the command line answers `--help` without the training libraries.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xvolution.training.api import deploy as deploy
    from xvolution.training.api import evaluate as evaluate
    from xvolution.training.api import load_model as load_model
    from xvolution.training.api import load_predictor as load_predictor
    from xvolution.training.api import predict as predict
    from xvolution.training.api import train as train
    from xvolution.training.classification.deploy import ClassifierDeployment as ClassifierDeployment
    from xvolution.training.classification.evaluate import EvaluationResult as EvaluationResult
    from xvolution.training.classification.predict import ClassifiedPicture as ClassifiedPicture
    from xvolution.training.classification.predict import ClassifierPredictions as ClassifierPredictions
    from xvolution.training.classification.predict import ClassifierPredictor as ClassifierPredictor
    from xvolution.training.coco.catalog import open_detection as open_detection
    from xvolution.training.coco.check import check_folder as check_folder
    from xvolution.training.config import DetectionConfig as DetectionConfig
    from xvolution.training.config import TrainConfig as TrainConfig
    from xvolution.training.data import open_data as open_data
    from xvolution.training.deployment import DeployResult as DeployResult
    from xvolution.training.detection.deploy import DetectorDeployment as DetectorDeployment
    from xvolution.training.detection.evaluate import DetectionEvaluation as DetectionEvaluation
    from xvolution.training.detection.predict import DetectedPicture as DetectedPicture
    from xvolution.training.detection.predict import DetectorPredictions as DetectorPredictions
    from xvolution.training.detection.predict import DetectorPredictor as DetectorPredictor
    from xvolution.training.errors import InputError as InputError
    from xvolution.training.errors import Interrupted as Interrupted
    from xvolution.training.errors import RunError as RunError
    from xvolution.training.evaluation import Evaluation as Evaluation
    from xvolution.training.fit import TrainResult as TrainResult
    from xvolution.training.predictor import Predictions as Predictions
    from xvolution.training.predictor import Predictor as Predictor
    from xvolution.training.quantization import Quantization as Quantization
    from xvolution.training.quantization import quantize as quantize

_HOMES = {
    "ClassifiedPicture": "classification.predict",
    "ClassifierDeployment": "classification.deploy",
    "ClassifierPredictions": "classification.predict",
    "ClassifierPredictor": "classification.predict",
    "DeployResult": "deployment",
    "DetectionConfig": "config",
    "DetectedPicture": "detection.predict",
    "DetectionEvaluation": "detection.evaluate",
    "DetectorDeployment": "detection.deploy",
    "DetectorPredictions": "detection.predict",
    "DetectorPredictor": "detection.predict",
    "Evaluation": "evaluation",
    "EvaluationResult": "classification.evaluate",
    "InputError": "errors",
    "Interrupted": "errors",
    "Quantization": "quantization",
    "RunError": "errors",
    "Predictions": "predictor",
    "Predictor": "predictor",
    "TrainConfig": "config",
    "TrainResult": "fit",
    "check_folder": "coco.check",
    "deploy": "api",
    "evaluate": "api",
    "load_model": "api",
    "load_predictor": "api",
    "open_data": "data",
    "open_detection": "coco.catalog",
    "predict": "api",
    "quantize": "quantization",
    "train": "api",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
