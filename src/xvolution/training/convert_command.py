"""The parser of `xvolution convert`; operator and places are flags of `xvolution train`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from xvolution.training.commands import configured, operator_options, said, train_flags
from xvolution.training.config import TrainConfig
from xvolution.training.errors import InputError
from xvolution.training.flags.flag import Flag
from xvolution.training.flags.parser import Parser
from xvolution.training.flags.run import add_field_flags, add_operator_flags, operators_help
from xvolution.training.flags.shared import add_checksum

#: Flags of `xvolution train` for the conversion.
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
#: Flags for the network to convert.
OWN = ("model", "pretrained", "num_classes", "checksum")


def convert_command(arguments: Sequence[str]) -> None:
    """Convert a network, print which convolutions were converted and which were not, and store it."""
    defaults = TrainConfig()
    operator = said(arguments, "operator") or defaults.operator
    parser = Parser(
        "convert",
        "Put X-volution, or another operator, into a classifier. Print which convolutions were converted, which were not and\n"
        "why, compare the outputs before and after, and write the network for train, evaluate and deploy.",
        operators_help("--operator", "--help-all" in arguments, operator),
    )
    name = "name of a network in timm, torchvision:NAME, or a .safetensors, .ckpt or .pth file."
    parser.add_argument("name", type=str, metavar="NAME", help=name)
    model = "timm's name of the network in the file, if the file does not have it; none by default."
    parser.add_flag("network", Flag("model", str | None, None, model))
    parser.add_flag(
        "network", Flag("pretrained", bool, True, "use timm's pretrained weights; only for a network by name.")
    )
    classes = "number of classes, for a network by name; by default that of its weights."
    parser.add_flag("network", Flag("num_classes", int | None, None, classes))
    add_checksum(parser)
    add_field_flags(parser, defaults, TAKEN)
    add_operator_flags(parser, operator, arguments)
    output = (
        ".safetensors file for the converted network in training form; required without --dry-run, by default none."
    )
    parser.add_flag("output", Flag("output", str | None, None, output))
    parser.add_flag("output", Flag("dry_run", bool, False, "print the summary and write nothing."))
    values = parser.parse_args(list(arguments)).as_dict()
    if values["output"] is None and not values["dry_run"]:
        raise InputError("give --output FILE for the converted network, or --dry-run to see the summary alone.")
    options = operator_options(values, operator, arguments)
    chosen = {name: values[name] for name in TAKEN} | {"operator": operator, "operator_options": options}
    from xvolution.training.converting import convert_network

    path = None if values["dry_run"] else values["output"]
    own = {name: values[name] for name in OWN}
    converted = convert_network(values["name"], path, configured(defaults, chosen), **own)
    print(converted.summary)
    if converted.path is not None:
        training = shlex.join(["xvolution", "train", *train_flags(converted.config), "--data", "DATA"])
        print(f"wrote {converted.path}\ntrain it: {training}")
