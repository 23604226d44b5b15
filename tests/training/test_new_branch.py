"""A branch that somebody registers is on the command line, with its own options, in `train` and in `compare`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.toy_branch import NAME, ToyAverage, ToyAverageAttention, registered
from xvolution.cli import main
from xvolution.compare.commands import parse_compare
from xvolution.compare.grid import cells
from xvolution.models import build_model
from xvolution.training import InputError
from xvolution.training.classification.train import model_spec
from xvolution.training.commands import parse_run


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with registered():
        yield


def help_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main([*arguments, *(() if "--help-all" in arguments else ("--help",))])
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["train", "compare"])
def test_help_lists_it_with_its_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"{NAME}: The average of a window of values, weighed at every pixel by a query."
    assert line in help_of([command], capsys)
    text = help_of([command, "--help-all"], capsys)
    assert line in text
    assert "sharpness: factor of the query before its tanh." in text


def test_it_has_flags_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(["train", "--operator", NAME], capsys)
    assert "--sharpness X factor of the query before its tanh. (default: 1.0)" in text
    config = parse_run(["--operator", NAME, "--sharpness", "3", "--window", "5"])
    assert config.conversion is not None
    assert config.conversion.operator.attention == ToyAverage(window=5, sharpness=3.0)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=f"{NAME} has no option --gate; its options are --window, --sharpness"):
        parse_run(["--operator", NAME, "--gate", "tanh"])
    with pytest.raises(InputError, match=r"sharpness is -1\.0; it must be a positive number"):
        _ = parse_run(["--operator", NAME, "--sharpness", "-1"]).conversion


def test_it_is_compared() -> None:
    config, _ = parse_compare(["--operators", f"{NAME}:sharpness=3,window=5", "--seeds", "1", "--small-images"])
    plain, toy = cells(config)
    assert plain.variant.operator == "conv"
    assert parse_run(toy.commands[0][2:]) == toy.train
    spec = model_spec(toy.train, 10)
    spec.kwargs.update(layers=[1, 1, 1, 1], channels=[8, 8, 8, 8])
    model = build_model(spec, example_inputs=torch.zeros(1, 3, 16, 16))
    branches = [module for module in model.modules() if isinstance(module, ToyAverageAttention)]
    assert [branch.config for branch in branches] == [ToyAverage(window=5, sharpness=3.0)] * 2
