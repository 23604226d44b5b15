"""The allowed contents of a file's description of its network (types, ranges, names), checked before building it.

A file may come from an untrusted source. The bounds are far above every real network, and small enough to refuse a file
quickly and without much memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from xvolution.attention import ATTENTION
from xvolution.conversion.register import OPERATORS, options_of
from xvolution.training.config import LARGEST_SIDE
from xvolution.training.errors import InputError

Text = Annotated[str, Meta(max_length=4096)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Side = Annotated[int, Meta(ge=1, le=LARGEST_SIDE)]
Classes = Annotated[int, Meta(ge=0, le=10_000_000)]
KernelSize = Annotated[int, Meta(ge=1, le=255)]
Deviation = Annotated[float, Meta(gt=0, le=1e6)]

#: Arguments of timm.create_model that make it read other files.
READING = ("pretrained", "checkpoint_path")
# Of numbers, of the length of lists and of the depth of lists in arguments that other libraries define.
_LARGEST_NUMBER, _LONGEST, _DEEPEST = 2**20, 4096, 8


class _Described(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _XVolution(_Described, tag="xvolution"):
    attention: dict[str, Any] | None = None
    num_conv_branches: Annotated[int, Meta(ge=1, le=64)] = 1
    diverse_branches: bool = False
    norm_layer: Annotated[str, Meta(pattern=r"^([A-Z]\w*Norm(\d?d)?|Identity)$", max_length=64)] | None = None
    zero_init: bool = True
    kernel_size: KernelSize | None = None


class _Operator(_Described, tag="operator"):
    operator: Name
    options: dict[str, Any] = {}
    kernel_size: KernelSize | None = None


class _Where(_Described):
    stages: list[Annotated[int, Meta(ge=1, le=1000)]] | None = None
    kernel_sizes: list[KernelSize] | None = None
    names: list[Name] | None = None
    at_projections: bool = True


class _Conversion(_Described):
    operator: _XVolution | _Operator
    where: _Where | None = None


class _Classifier(_Described):
    name: Name
    num_classes: Classes
    in_chans: Annotated[int, Meta(ge=1, le=4096)] = 3
    kwargs: dict[str, Any] = {}
    small_images: bool = False
    conversion: _Conversion | None = None


class _Detector(_Described):
    architecture: Name = "fasterrcnn"
    version: int = 1
    backbone: Name = "resnet50"
    num_classes: Annotated[int, Meta(ge=2, le=1_000_000)] = 91
    norm: Name = "frozen"
    min_size: Side = 800
    max_size: Side = 1333
    trainable_layers: Annotated[int, Meta(ge=0, le=5)] = 3
    kwargs: dict[str, Any] = {}
    parts: list[Name] = msgspec.field(default_factory=lambda: ["backbone", "fpn"])
    conversion: _Conversion | None = None


class _Preprocessing(_Described):
    image_size: Side
    mean: Annotated[list[float], Meta(min_length=1, max_length=4096)]
    std: Annotated[list[Deviation], Meta(min_length=1, max_length=4096)]
    crop_pct: Annotated[float, Meta(gt=0, le=10)] = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = "bicubic"


class _File(_Described, kw_only=True):
    format: int
    type: Name
    class_names: list[Text]
    data: Text
    form: Literal["training", "deployed"] = "training"
    layouts: dict[str, Name] = {}
    fold_norms: bool = False
    provenance: dict[str, Any] = {}


class ClassifierFile(_File, kw_only=True):
    """The allowed description in a classifier's file."""

    model: _Classifier
    preprocessing: _Preprocessing


class DetectorFile(_File, kw_only=True):
    """The allowed description in a detector's file."""

    model: _Detector
    category_ids: list[int]


#: What the file of a network of some type may say.
Schema = type[ClassifierFile] | type[DetectorFile]


def require_described(values: Mapping[str, Any], kind: Schema) -> None:
    """Require that plain JSON values, in this version's format, describe a network.

    Raises:
        InputError: a field is missing, unknown, of another type or out of range; the message names it.
    """
    try:
        found = msgspec.convert(values, kind)
        _require_arguments(found.model.kwargs)
        if found.model.conversion is not None:
            _require_operator(found.model.conversion.operator)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise InputError(f"the file's description of its network cannot be used: {error}.") from error


def _require_operator(given: _XVolution | _Operator) -> None:
    if isinstance(given, _Operator):
        if given.operator not in OPERATORS:
            raise ValueError(f"there is no operator {given.operator!r}")
        name, values = given.operator, given.options
        types = {option.name: option.type for option in options_of(name)}
    elif given.attention is None:
        return
    else:
        values = dict(given.attention)
        name = values.pop("type", None)
        if not isinstance(name, str) or name not in ATTENTION:
            raise ValueError(f"there is no attention branch {name!r}")
        own = {field.name for field in fields(ATTENTION[name])}
        types = {option.name: option.type for option in options_of(name) if option.name in own}
    for option, value in values.items():
        if option not in types:
            raise ValueError(f"{name} has no option {option!r}")
        _require_small(value, option)
        try:
            msgspec.convert(value, types[option])
        except msgspec.ValidationError as error:
            raise ValueError(f"the option {option} of {name}: {error}") from error


def _require_arguments(kwargs: Mapping[str, Any]) -> None:
    for name, value in kwargs.items():
        if name in READING:
            raise ValueError(f"the argument {name} would read other files and is not allowed in a file")
        _require_small(value, name)


def _require_small(value: Any, name: str, depth: int = 0) -> None:
    """Require that a value for another library has no number or list that would fill the memory."""
    if isinstance(value, int | float) and not abs(value) <= _LARGEST_NUMBER:
        raise ValueError(f"{name} is {value}; the largest allowed number is {_LARGEST_NUMBER}")
    if (isinstance(value, str | list | dict) and len(value) > _LONGEST) or depth > _DEEPEST:
        raise ValueError(f"{name} is longer or more deeply nested than allowed ({_LONGEST} values, {_DEEPEST} levels)")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        _require_small(each, name, depth + 1)
