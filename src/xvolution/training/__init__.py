"""Training, evaluation and deployment of image classifiers: `train`, `evaluate`, `deploy`.

The names are imported when they are used, so that the command line answers `--help` without the training libraries.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xvolution.training.checkpoint import load_model as load_model
    from xvolution.training.config import TrainConfig as TrainConfig
    from xvolution.training.data import open_data as open_data
    from xvolution.training.deployment import DeployResult as DeployResult
    from xvolution.training.deployment import deploy as deploy
    from xvolution.training.errors import InputError as InputError
    from xvolution.training.errors import Interrupted as Interrupted
    from xvolution.training.errors import RunError as RunError
    from xvolution.training.evaluation import EvaluationResult as EvaluationResult
    from xvolution.training.evaluation import evaluate as evaluate
    from xvolution.training.run import TrainResult as TrainResult
    from xvolution.training.run import train as train

_HOMES = {
    "DeployResult": "deployment",
    "EvaluationResult": "evaluation",
    "InputError": "errors",
    "Interrupted": "errors",
    "RunError": "errors",
    "TrainConfig": "config",
    "TrainResult": "run",
    "deploy": "deployment",
    "evaluate": "evaluation",
    "load_model": "checkpoint",
    "open_data": "data",
    "train": "run",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
