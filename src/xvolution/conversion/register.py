"""The register of all operators that can replace a convolution: attention branches and operators from other papers."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from torch import nn

from xvolution.attention import ATTENTION
from xvolution.attention.base import checked_options
from xvolution.conversion.config import Conversion, ConversionConfig, Placement, XVolutionConfig, check_fields
from xvolution.convolutions import padding_of
from xvolution.copying import hand_over_hooks
from xvolution.memory_format import with_format_of

#: The operator of which nothing more is said: X-volution with its default branch.
DEFAULT = "xvolution"
#: Options of the operator around a branch, which all forms of X-volution have.
_OWN_OPTIONS = ("num_conv_branches", "diverse_branches", "norm_layer", "zero_init", "kernel_size")


@dataclass(frozen=True)
class Operator:
    """An operator other than X-volution.

    Attributes:
        name: its name in the register.
        build: called like ``nn.Conv2d`` (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype), with options of its own as further keywords. A class that can keep the convolution that
            it replaces has ``from_conv(conv, conv_norm=None, **options)``, which is called instead, with the norm that follows.
        summary: one sentence.
        citation: authors, title, where and when.
        pixels: growth of its cost with the number n of pixels, such as ``"n"`` or ``"n²"``.
    """

    name: str
    build: Callable[..., nn.Module]
    summary: str
    citation: str
    pixels: str = "n"

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options beyond the arguments of ``nn.Conv2d``."""
        convolution = set(inspect.signature(nn.Conv2d.__init__).parameters)
        return tuple(name for name in inspect.signature(self.build).parameters if name not in convolution)

    @property
    def from_conv(self) -> Callable[..., nn.Module] | None:
        """Builds the operator around a convolution and its norm; None where it has new weights only."""
        return getattr(self.build, "from_conv", None)


OPERATORS: dict[str, Operator] = {}


@dataclass(frozen=True)
class Form:
    """A form of X-volution with its own name.

    Attributes:
        config: the configuration with that name.
        summary: one sentence.
    """

    config: XVolutionConfig
    summary: str


#: Forms of X-volution by name: the default, and controls, which leave out a part of what they are compared with.
FORMS: dict[str, Form] = {
    DEFAULT: Form(XVolutionConfig(), "X-volution with its default branch, the paper's pixel shift attention.")
}


def register(
    name: str, summary: str, citation: str, pixels: str = "n"
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorate the class, or the function, that builds an operator.

    Raises:
        ValueError: the name is taken.
    """

    def add(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        if name in operator_names():
            raise ValueError(f"an operator called {name!r} is registered already; choose another name")
        OPERATORS[name] = Operator(name, build, summary, citation, pixels)
        return build

    return add


def operator_names() -> tuple[str, ...]:
    """All names that ``operator_config`` takes: forms of X-volution, attention branches, other operators."""
    return (*FORMS, *ATTENTION, *OPERATORS)


@dataclass(frozen=True)
class OperatorConfig(ConversionConfig):
    """An operator of the register in the place of convolutions.

    It starts with new weights, unless its class keeps the convolution and the norm that follows (see ``Operator``).

    Attributes:
        operator: its name.
        options: its options, as JSON values.
    """

    operator: str = "conv"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise ValueError(f"operator is {self.operator!r}; allowed are {', '.join(map(repr, OPERATORS))}")
        checked_options(self.operator, self.options, list(OPERATORS[self.operator].options))

    @property
    def takes_norm(self) -> bool:
        return OPERATORS[self.operator].from_conv is not None

    def replacement(self, conv: Any, norm: nn.Module | None) -> nn.Module:
        """The operator with the geometry of ``conv`` and the hooks on it, or around it; then with ``norm``, which else stays.

        Raises:
            ValueError: the operator refuses the geometry, such as padding that depends on the size of the image.
        """
        replaced, conv, from_conv = conv, self.resized(conv), OPERATORS[self.operator].from_conv
        if from_conv is not None:
            return from_conv(conv, conv_norm=norm, **self.options)
        padding = padding_of(conv)
        try:
            built = with_format_of(conv.weight, self._build(conv, padding)).train(conv.training)
            return hand_over_hooks(replaced, built)
        except ValueError as error:
            if padding != "same_upper":
                raise
            raise ValueError(
                f"{self.operator!r} cannot take the place of a {type(conv).__name__} that pads by the size of the image: "
                f"{error}; leave it out by names or filter_fn"
            ) from error

    def _build(self, conv: Any, padding: int | tuple[int, ...] | str) -> nn.Module:
        return OPERATORS[self.operator].build(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
            **self.options,
        )

    def to_dict(self) -> dict[str, Any]:
        values = {"type": "operator", "operator": self.operator, "options": dict(self.options)}
        return {**values, "kernel_size": self.kernel_size}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OperatorConfig:
        """The inverse of ``to_dict``.

        Raises:
            ValueError: a field, an operator or an option that this version does not know.
        """
        given = {name: value for name, value in values.items() if name != "type"}
        check_fields(cls, given)
        return cls(**given)


def operator_config(
    given: str | ConversionConfig | None = None, options: Mapping[str, Any] | None = None
) -> ConversionConfig:
    """The configuration for a name of ``operator_names`` and options; the default X-volution if None.

    Args:
        given: a name, or a configuration, which is returned unchanged.
        options: options of the named operator, as listed by ``options_of``.

    Raises:
        ValueError: there is no such operator, or it has no such option.
    """
    if isinstance(given, ConversionConfig):
        return given
    name = DEFAULT if given is None else given
    if name not in operator_names():
        raise ValueError(f"operator is {name!r}; allowed are {', '.join(map(repr, operator_names()))}")
    values = checked_options(name, options or {}, [option.name for option in options_of(name)])
    if name in OPERATORS:
        kernel_size = values.pop("kernel_size", None)
        return OperatorConfig(operator=name, options=values, kernel_size=kernel_size)
    own = {option: values.pop(option) for option in _OWN_OPTIONS if option in values}
    base = _form(name)
    if values:
        own["attention"] = typing.cast(Any, type(base.attention))(**{**vars(base.attention), **values})
    return XVolutionConfig(**{**vars(base), **own})


def config_from_dict(values: Mapping[str, Any]) -> ConversionConfig:
    """The inverse of ``to_dict`` of either configuration.

    Raises:
        ValueError: a field, an operator or an option that this version does not know.
    """
    kinds: dict[str, Callable[[Mapping[str, Any]], ConversionConfig]] = {
        "xvolution": XVolutionConfig.from_dict,
        "operator": OperatorConfig.from_dict,
    }
    kind = values.get("type")
    if kind not in kinds:
        raise ValueError(f"a configuration is of type {kind!r}; this version knows {', '.join(map(repr, kinds))}")
    return kinds[kind](values)


def conversion_from_dict(values: Mapping[str, Any]) -> Conversion:
    """The inverse of ``Conversion.to_dict``.

    Raises:
        ValueError: a field, an operator or an option that this version does not know.
    """
    check_fields(Conversion, values)
    where = values.get("where") or {}
    check_fields(Placement, where)
    return Conversion(config_from_dict(values["operator"]), Placement.of(**where))


@dataclass(frozen=True)
class Option:
    """An option of an operator.

    Attributes:
        name, type, default: of the option; the type as a Python annotation.
        documented_by: the class or function whose docstring describes it.
    """

    name: str
    type: Any
    default: Any
    documented_by: Any


def options_of(name: str) -> tuple[Option, ...]:
    """The options of an operator by its name, its own first.

    Raises:
        ValueError: there is no such operator.
    """
    if name in OPERATORS:
        kernel_size = _field_options(ConversionConfig, ConversionConfig)
        return (*_signature_options(OPERATORS[name]), *kernel_size)
    base = _form(name)
    branch = () if base.attention is None else _field_options(type(base.attention), base.attention)
    own = {option.name: option for option in _field_options(XVolutionConfig, base)}
    return (*branch, *(own[option] for option in _OWN_OPTIONS))


def summary_of(name: str) -> str:
    """One sentence about an operator."""
    if name in OPERATORS:
        return OPERATORS[name].summary
    if name in FORMS:
        return FORMS[name].summary
    return (ATTENTION[name].__doc__ or "").strip().split("\n")[0]


def _form(name: str) -> XVolutionConfig:
    return FORMS[name].config if name in FORMS else XVolutionConfig(attention=ATTENTION[name]())


def _field_options(cls: type, values: Any) -> tuple[Option, ...]:
    hints = typing.get_type_hints(cls)
    found = []
    for item in fields(cls):
        default = getattr(values, item.name, item.default)
        declaring = next(owner for owner in cls.__mro__ if item.name in inspect.get_annotations(owner))
        found.append(Option(item.name, hints[item.name], None if default is MISSING else default, declaring))
    return tuple(found)


def _signature_options(operator: Operator) -> tuple[Option, ...]:
    build: Any = operator.build
    hints = typing.get_type_hints(build.__init__ if inspect.isclass(build) else build)
    parameters = inspect.signature(build).parameters
    return tuple(Option(name, hints[name], parameters[name].default, build) for name in operator.options)


# The operators of this package register themselves. They stand above this module, as those of other packages do, and whoever
# has the register has them, whatever was imported first.
importlib.import_module("xvolution.operators")
