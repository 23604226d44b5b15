"""Training, evaluation and deployment of image classifiers, `train`, `evaluate`, `deploy`, and of detectors.

The names are imported when they are used, so that the command line answers `--help` without the training libraries.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xvolution.training.checkpoint import load_detector as load_detector
    from xvolution.training.checkpoint import load_model as load_model
    from xvolution.training.coco.check import check_folder as check_folder
    from xvolution.training.coco.source import open_detection as open_detection
    from xvolution.training.config import DetectionConfig as DetectionConfig
    from xvolution.training.config import TrainConfig as TrainConfig
    from xvolution.training.data import open_data as open_data
    from xvolution.training.deployment import DeployResult as DeployResult
    from xvolution.training.deployment import deploy as deploy
    from xvolution.training.detection import train_detector as train_detector
    from xvolution.training.detection_deployment import DetectorDeployment as DetectorDeployment
    from xvolution.training.detection_deployment import deploy_detector_file as deploy_detector_file
    from xvolution.training.detection_evaluation import DetectionEvaluation as DetectionEvaluation
    from xvolution.training.detection_evaluation import evaluate_detector as evaluate_detector
    from xvolution.training.detection_evaluation import predict as predict
    from xvolution.training.errors import InputError as InputError
    from xvolution.training.errors import Interrupted as Interrupted
    from xvolution.training.errors import RunError as RunError
    from xvolution.training.evaluation import EvaluationResult as EvaluationResult
    from xvolution.training.evaluation import evaluate as evaluate
    from xvolution.training.run import TrainResult as TrainResult
    from xvolution.training.run import train as train

_HOMES = {
    "DeployResult": "deployment",
    "DetectionConfig": "config",
    "DetectionEvaluation": "detection_evaluation",
    "DetectorDeployment": "detection_deployment",
    "EvaluationResult": "evaluation",
    "InputError": "errors",
    "Interrupted": "errors",
    "RunError": "errors",
    "TrainConfig": "config",
    "TrainResult": "run",
    "check_folder": "coco.check",
    "deploy": "deployment",
    "deploy_detector_file": "detection_deployment",
    "evaluate": "evaluation",
    "evaluate_detector": "detection_evaluation",
    "load_detector": "checkpoint",
    "load_model": "checkpoint",
    "open_data": "data",
    "open_detection": "coco.source",
    "predict": "detection_evaluation",
    "train": "run",
    "train_detector": "detection",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
