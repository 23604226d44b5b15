"""Help and mistakes of every command, without torch, in words that help."""

from __future__ import annotations

import argparse
import subprocess
import sys
from contextlib import suppress
from dataclasses import fields

import pytest

pytest.importorskip("jsonargparse")

from xvolution.bench import flags as bench_flags
from xvolution.cli import COMMANDS, main
from xvolution.conversion.register import operator_names
from xvolution.training import DetectionConfig, TrainConfig
from xvolution.training.errors import InputError
from xvolution.training.flags import operators
from xvolution.training.flags.flag import Flag, read_flags
from xvolution.training.flags.parser import Parser
from xvolution.training.flags.run import FIELDS

BENCHES = [["bench", kind] for kind in (*bench_flags.KINDS, "page")]
#: Every command; some have flags by task or kind.
ALL = [*([name] for name in COMMANDS), *BENCHES, ["train", "--task", "detect"], ["compare", "--task", "segment"]]
ids = "-".join


def help_of(arguments: list[str], capsys: pytest.CaptureFixture[str], flag: str = "--help") -> str:
    with suppress(SystemExit):
        main([*arguments, flag])
    return capsys.readouterr().out


def flags_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("  -")]


def test_help_and_mistakes_of_every_command_need_no_torch() -> None:
    program = """
import sys
from xvolution.cli import main
for command in {all!r}:
    for further in (["--help"], ["--help-all"], ["--no-such-flag"]):
        try:
            main([*command, *further])
        except SystemExit as left:
            assert not left.code
        heavy = [name for name in {heavy!r} if name in sys.modules]
        assert not heavy, (command, further, heavy)
"""
    heavy = ("torch", "numpy", "timm", "lightning", "torchvision", "datasets", "matplotlib", "onnx", "rich")
    run = [sys.executable, "-c", program.format(all=ALL, heavy=heavy)]
    finished = subprocess.run(run, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "xvolution train --help-all" in finished.stdout


def test_the_table_of_operators_is_what_the_register_says() -> None:
    """Else: python -m xvolution.training.flags.operators."""
    stored = read_flags("xvolution.training.flags", "operators.json")
    assert tuple(stored) == operator_names()
    assert stored == operators.all_registered()


def test_the_table_of_benches_is_what_their_classes_say() -> None:
    """Else: python -m xvolution.bench.flags."""
    assert bench_flags.stored() == bench_flags.described()


def test_an_operator_that_somebody_registers_has_flags_where_its_module_is_loaded() -> None:
    program = """
import torch
from xvolution.conversion.register import register

@register("mine", "An operator of mine.", "nobody")
def mine(in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True,
         padding_mode="zeros", device=None, dtype=None, *, depth: int = 3):
    '''A convolution.

    Args:
        depth: how deep it is.
    '''
    return torch.nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)

from xvolution.cli import main
main(["train", "--operator", "mine", "--help"])
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "mine: An operator of mine." in finished.stdout
    assert "--depth N how deep it is. (default: 3)" in " ".join(finished.stdout.split())


@pytest.mark.parametrize("arguments", ALL, ids=ids)
def test_help_has_groups_defaults_and_at_most_fifty_flags(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(arguments, capsys)
    assert 0 < len(flags_in(text)) <= 50 or arguments == ["bench"]
    for unwanted in ("Optional", "Literal", "typing", "null", " | ", "<class"):
        assert unwanted not in text


@pytest.mark.parametrize("name", operator_names())
def test_help_of_every_operator_has_at_most_fifty_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(flags_in(help_of(["train", "--operator", name], capsys))) <= 50


@pytest.mark.parametrize("config", [TrainConfig, DetectionConfig])
def test_every_field_of_a_configuration_has_its_group(config: type) -> None:
    grouped = " ".join(text for texts in FIELDS.values() for text in texts).split()
    assert len(grouped) == len(set(grouped))
    assert {field.name for field in fields(config)} - {"task"} <= set(grouped)


@pytest.mark.parametrize("arguments", ALL, ids=ids)
def test_every_flag_has_a_sentence_and_a_default(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Parser] = []
    init = Parser.__init__
    monkeypatch.setattr(
        Parser, "__init__", lambda self, *given, **named: (made.append(self), init(self, *given, **named))[1]
    )
    text = " ".join(help_of(arguments, capsys, "--help-all").split())
    assert made or arguments == ["bench"]
    for action in (action for parser in made for action in parser._actions if action.help != argparse.SUPPRESS):
        sentence = " ".join((action.help or "").split())
        assert len(sentence.split()) > 1, action.dest
        assert sentence.endswith((".", "(required)")), action.dest
        assert not sentence.startswith(("of ", "on ", "as ")), f"{action.dest}: {sentence}"
        if action.option_strings and action.nargs != 0 and not sentence.endswith("(required)"):
            place = text.index(sentence.replace("%%", "%"))
            assert "default" in text[place : place + len(sentence) + 12], action.dest


@pytest.mark.parametrize("arguments", [a for a in ALL if a != ["bench"]], ids=ids)
def test_a_typo_is_answered_with_the_nearest_flag(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    option = next(line.split()[0].rstrip(",") for line in flags_in(help_of(arguments, capsys)) if "--" in line)
    option = option.replace("[no-]", "")
    assert main([*arguments, option[:-1] + "qx"]) == 2
    said = capsys.readouterr().err
    assert f"there is no flag {option[:-1]}qx; did you mean {option}?" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--epochs", "many"], "--epochs is many; it must be a whole number."),
        (["train", "--lr=fast"], "--lr is fast; it must be a number."),
        (["train", "--stages", "3"], "--stages is 3; it must be a list of whole numbers such as [3,4]."),
        (["train", "--crop", "padd"], "--crop is padd; it must be auto, pad or rrc. Did you mean pad?"),
        (["train", "--model-kwargs", "{"], "--model-kwargs is {; it must be a JSON object such as"),
        (["train", "--epochs"], "--epochs needs a value: a whole number."),
        (["train", "--pretrained=yes"], "--pretrained takes no value; give --pretrained or --no-pretrained."),
        (["train", "--operator", "linaer"], "se; did you mean linear?"),
        (["train", "--config", "/no/such.yaml"], "there is no file /no/such.yaml, which --config names."),
        (["train", "more"], "there is one argument too many, 'more'; usage: xvolution train [flags]."),
        (["evaluate"], "CHECKPOINT is missing; usage: xvolution evaluate CHECKPOINT [flags]."),
        (
            ["evaluate", "a.ckpt", "--split", "vall"],
            "--split is vall; it must be train, val or test. Did you mean val?",
        ),
        (["quantize", "a.ckpt"], "--output is missing; usage: xvolution quantize CHECKPOINT --output FILE [flags]."),
        (["deploy", "a.ckpt"], "nothing says what to write; give --output with files, or --to with runtimes"),
        (["bench", "operators", "--rounds", "x"], "--rounds is x; it must be a whole number."),
        (["bench", "netwroks"], "did you mean networks?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_answered_with_a_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    answer = capsys.readouterr().err
    assert said in answer
    assert len(answer.splitlines()) == 1


def test_a_setting_that_a_file_misspells(tmp_path: object) -> None:
    from xvolution.training.commands import parse_run

    file = f"{tmp_path}/run.yaml"
    with open(file, "w") as opened:
        opened.write("epohs: 3\n")
    with pytest.raises(
        InputError, match="the setting 'epohs', which xvolution train does not have; did you mean epochs"
    ):
        parse_run(["--config", file])


def test_a_flag_survives_json() -> None:
    for kind in (int, float | None, str, list[int] | None, bool | None):
        flag = Flag("name", kind, None, "a sentence.")
        assert Flag.from_dict(flag.to_dict()) == flag
