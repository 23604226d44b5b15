"""The parser of `xvolution convert`; what is put in and where is said by flags of `xvolution train`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import fields

from xvolution.training.commands import parse_run, train_flags
from xvolution.training.config import TrainConfig
from xvolution.training.errors import InputError

#: Flags of `xvolution train` that say what is converted and how.
TAKEN = (
    "operator",
    "operator_options",
    "stages",
    "kernel_sizes",
    "names",
    "at_projections",
    "model_kwargs",
    "in_chans",
    "small_images",
    "image_size",
)


def convert_command(arguments: Sequence[str]) -> None:
    """Convert a network, print what was converted and what was left alone, and store it."""
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in TAKEN)
    parser = argparse.ArgumentParser(
        prog="xvolution convert",
        usage="%(prog)s NAME [--output FILE | --dry-run] [flags]",
        description="Put X-volution, or another operator, into a classifier, print what was converted and what was left alone "
        "and why, and store the network for train, evaluate and deploy. Its outputs are compared before and after. NAME is "
        "timm's name of a network, torchvision:NAME, or a .safetensors or .ckpt file.",
        epilog=f"What is put in and where is said as in training: {flags} and the options of the operator; see xvolution train "
        "--help.",
        allow_abbrev=False,
    )
    parser.add_argument("--output", help="file for the converted network, in its training form: .safetensors")
    parser.add_argument("--dry-run", action="store_true", help="print the summary and write nothing")
    parser.add_argument("--model", help="timm's name of the network whose weights a file holds that does not say it")
    parser.add_argument(
        "--pretrained",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="begin with timm's weights of a network by name (default: yes)",
    )
    parser.add_argument("--num-classes", type=int, help="of a network by name (default: those of its weights)")
    parser.add_argument(
        "--checksum",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare a file with the checksum in it (default: yes)",
    )
    # The name comes first: behind a flag of training it could be that flag's value.
    name = [arguments[0]] if arguments and not arguments[0].startswith("-") else []
    own, of_training = parser.parse_known_args(list(arguments[len(name) :]))
    if not name:
        raise InputError("give the network first: xvolution convert NAME --output FILE, or xvolution convert --help.")
    if own.output is None and not own.dry_run:
        raise InputError("give --output FILE for the converted network, or --dry-run to see the summary alone.")
    config = _configured(of_training)
    from xvolution.training.converting import convert_network

    given = {"model": own.model, "pretrained": own.pretrained, "num_classes": own.num_classes, "checksum": own.checksum}
    converted = convert_network(name[0], None if own.dry_run else own.output, config, **given)
    print(converted.summary)
    if converted.path is not None:
        training = shlex.join(["xvolution", "train", *train_flags(converted.config), "--data", "DATA"])
        print(f"wrote {converted.path}\ntrain it: {training}")


def _configured(arguments: Sequence[str]) -> TrainConfig:
    """The configuration of flags of `xvolution train`, of those that have a meaning here.

    Raises:
        InputError: one has none.
    """
    config = parse_run(arguments)
    assert isinstance(config, TrainConfig)
    default = TrainConfig()
    for field in fields(config):
        if field.name not in TAKEN and getattr(config, field.name) != getattr(default, field.name):
            raise InputError(f"--{field.name.replace('_', '-')} has no meaning for xvolution convert; leave it out.")
    return config
