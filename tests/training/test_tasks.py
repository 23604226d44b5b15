"""Every task is one object of the register, and the commands reach it there."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from xvolution.cli import main
from xvolution.compare.register import COMPARED, comparison_of
from xvolution.compare.task import ComparedTask
from xvolution.models import ModelSpec
from xvolution.models.detection import DetectorSpec
from xvolution.training import InputError, RunError, TrainConfig, deploy, evaluate, load_model, train
from xvolution.training.checkpoint import read_header, save_weights
from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.commands import parse_run, train_flags
from xvolution.training.config import RunConfig
from xvolution.training.data.transforms import Preprocessing
from xvolution.training.deployment import DeploySettings
from xvolution.training.detection.metadata import DetectorMetadata
from xvolution.training.evaluation import Evaluation
from xvolution.training.fit import TrainResult
from xvolution.training.metadata import Metadata
from xvolution.training.tasks import TASKS, Option, Task, config_from_dict, task_of, task_of_file


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_has_all_of_the_interface(task: Task[Any, Any]) -> None:
    assert not inspect.isabstract(type(task))
    assert TASKS[task.name] is task
    config = task.defaults()
    assert task_of(config) is task
    assert task_of(config_from_dict(json.loads(json.dumps(config.to_dict())))) is task
    assert parse_run(train_flags(config)) == config
    assert issubclass(task.metadata, Metadata)
    assert {task.metadata.type, task.metadata.noun} <= {"classify", "detect", "a classifier", "a detector"}
    assert task.options.keys() == {"evaluate", "deploy", "predict"}
    for command in (task.evaluate, task.deploy, task.predict):
        for option in task.options[command.__name__]:
            assert option.help.endswith(".")
    assert ".safetensors" in task.endings
    assert task.evaluation_batch >= 1


def test_every_task_is_compared() -> None:
    assert COMPARED.keys() == TASKS.keys()
    for task in TASKS.values():
        pytest.importorskip("pycocotools")
        assert isinstance(comparison_of(task.defaults()), ComparedTask)


METADATA: dict[str, Callable[[], Metadata]] = {
    "classify": lambda: ClassifierMetadata(
        model=ModelSpec("resnet18", 2), preprocessing=Preprocessing(32), class_names=["a", "b"], data="digits"
    ),
    "detect": lambda: DetectorMetadata(model=DetectorSpec(), class_names=["a"], category_ids=[1], data="."),
    "segment": lambda: DetectorMetadata(model=DetectorSpec("maskrcnn"), class_names=["a"], category_ids=[1], data="."),
}


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "before files said their type"])
@pytest.mark.parametrize("name", METADATA)
def test_a_file_tells_its_task(name: str, typed: bool, tmp_path: Path) -> None:
    metadata = METADATA[name]()
    values = metadata.to_dict()
    assert values["type"] == ("classify" if name == "classify" else "detect")
    if not typed:
        del values["type"], values["format"]
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(1)}, path, metadata={"xvolution": json.dumps(values)})
    task = task_of_file(path)
    assert task.name == name
    assert task.metadata.from_dict(read_header(path)) == metadata


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "pose", "model": {}}, "type pose; the tasks are classify, detect, segment"),
        ({"type": "classify"}, "cannot be read"),
        ([], "cannot be read"),
    ],
    ids=["unknown type", "no model", "no object"],
)
def test_files_of_no_task_are_refused(values: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(1)}, path, metadata={"xvolution": json.dumps(values)})
    with pytest.raises(InputError, match=message):
        load_model(path)


@pytest.mark.parametrize("name", METADATA)
def test_a_network_of_another_type_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, nn.Identity(), METADATA[name]())
    for task in TASKS.values():
        if task.metadata is not type(METADATA[name]()):
            with pytest.raises(InputError, match=f"give a file of {task.metadata.noun}"):
                task.load(path)


def test_an_option_of_another_task_is_refused(tmp_path: Path) -> None:
    classifier, detector = tmp_path / "classifier.safetensors", tmp_path / "detector.safetensors"
    save_weights(classifier, nn.Identity(), METADATA["classify"]())
    save_weights(detector, nn.Identity(), METADATA["detect"]())
    with pytest.raises(InputError, match="--page cannot be used for a classifier: it is an option of detect, segment"):
        evaluate(classifier, page=tmp_path / "page.html")
    with pytest.raises(InputError, match="--fixed-size cannot be used for a detector: it is an option of classify"):
        deploy(detector, [tmp_path / "detector.onnx"], fixed_size=True)
    with pytest.raises(InputError, match="--colour cannot be used for a classifier: no task has such an option"):
        evaluate(classifier, colour="red")


@dataclass
class ToyConfig(RunConfig):
    """A training of nothing.

    Args:
        task: toy.
        size: of the toy.
    """

    task: Literal["toy"] = "toy"
    size: int = 3

    @property
    def network(self) -> str:
        return "toy"

    @property
    def trained(self) -> str:
        return f"toy-{self.size}"


@dataclass(kw_only=True)
class ToyMetadata(Metadata):
    type = "toy"
    noun = "a toy"

    model: ModelSpec

    @classmethod
    def fields(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "model": ModelSpec.from_dict(values["model"])}


@dataclass
class ToyEvaluation(Evaluation):
    images: int
    colour: str | None

    def to_dict(self) -> dict[str, Any]:
        return vars(self)


class Toy(Task[ToyConfig, ToyMetadata]):
    name = "toy"
    options = {"evaluate": (Option("colour", str, "of the toy."),), "deploy": ()}  # noqa: RUF012
    endings = (".safetensors",)
    evaluation_batch = 7
    metadata = ToyMetadata

    def defaults(self) -> ToyConfig:
        return ToyConfig()

    def build(self, metadata: ToyMetadata) -> nn.Module:
        return nn.Linear(metadata.model.num_classes, 1)

    def exported_network(self, path: Any, runtime: Any, checksum: bool = True) -> Any:
        raise InputError("toys are not exported.")

    def train(self, config: ToyConfig) -> TrainResult:
        metadata = ToyMetadata(model=ModelSpec("toy", config.size), class_names=[], data=config.data)
        weights = config.run_dir / "model.safetensors"
        save_weights(weights, self.build(metadata), metadata)
        return TrainResult(config.run_dir, weights, weights, {"epoch": 1, "fun": 0.5}, [])

    def figures(self, metrics: Any) -> str:
        return f"fun {metrics['fun']:.0%}"

    def evaluate(self, model: nn.Module, metadata: ToyMetadata, settings: Any, **options: Any) -> ToyEvaluation:
        return ToyEvaluation(settings.batch_size, **{"colour": None, **options})

    def deploy(self, model: nn.Module, metadata: ToyMetadata, settings: DeploySettings, **options: Any) -> Any:
        raise RunError("a toy is not deployed.")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    task = Toy()
    monkeypatch.setitem(TASKS, "toy", task)
    return task


def test_a_task_of_ones_own_is_reached_by_every_command(toy: Toy, tmp_path: Path, capsys: Any) -> None:
    run, report = tmp_path / "run", tmp_path / "report.json"
    weights = str(run / "model.safetensors")
    assert main(["train", "--task", "toy", "--size", "5", "--output", str(run)]) == 0
    assert "best epoch 1: fun 50%" in capsys.readouterr().out
    assert main(["evaluate", weights, "--colour", "red", "--json", str(report)]) == 0
    assert json.loads(report.read_text()) == {"images": 7, "colour": "red"}
    assert main(["deploy", weights, "--output", str(tmp_path / "toy.onnx")]) == 2
    assert "the endings are .safetensors for a toy" in capsys.readouterr().err
    assert main(["deploy", weights, "--output", str(tmp_path / "toy.safetensors")]) == 1
    assert main(["predict", weights, weights]) == 2
    assert "a toy cannot predict single pictures; give a classifier or a detector" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "--colour" in capsys.readouterr().out


def test_a_task_of_ones_own_is_found_by_configuration_and_file(toy: Toy, tmp_path: Path) -> None:
    config = parse_run(["--task", "toy", "--size", "4", "--output", str(tmp_path)])
    assert config == ToyConfig(size=4, output=str(tmp_path))
    assert task_of(config) is toy
    assert config_from_dict(config.to_dict()) == config
    assert parse_run(train_flags(config)) == config
    weights = train(config).weights
    assert task_of_file(weights) is toy
    model, metadata = load_model(weights)
    assert isinstance(model, nn.Linear)
    assert metadata.model.name == "toy"
    with pytest.raises(InputError, match="the tasks that can be compared are classify, detect, segment"):
        comparison_of(config)


def test_a_configuration_without_a_task_is_not_built() -> None:
    with pytest.raises(TypeError, match="abstract"):
        RunConfig()  # type: ignore[abstract]
    assert "task" not in TrainConfig().to_dict()  # so that comparisons of earlier versions go on
