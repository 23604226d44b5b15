"""The register of operators: everything that can take the place of a convolution, under one interface."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from xvolution.surgery import Conversion, XVolutionConfig


@dataclass(frozen=True)
class Operator:
    """An entry of the register.

    Attributes:
        name: what it is registered by.
        build: called like ``nn.Conv2d`` (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype), with options of its own as further keywords.
        summary: one sentence.
        citation: authors, title, where and when.
        pixels: how its work grows with the number n of pixels, such as ``"n"`` or ``"n²"``.
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


OPERATORS: dict[str, Operator] = {}

#: Forms of X-volution that have a name of their own; ``xvolution`` is the default form, ``conv-conv`` the control of the paper's
#: ablation (section 4): the same structure without attention. ``conv-window`` is that of ``xvolution-shared``.
XVOLUTIONS: dict[str, dict[str, Any]] = {
    "conv-conv": {"attention": None, "num_conv_branches": 2},
    "conv-window": {"attention": "shared", "gate": "one"},
    "xvolution": {},
    "xvolution-dot": {"similarity": "dot"},
    "xvolution-linear": {"attention": "linear"},
    "xvolution-global": {"attention": "global"},
    "xvolution-image": {"attention": "image"},
    "xvolution-shared": {"attention": "shared"},
}


def register(
    name: str, summary: str, citation: str, pixels: str = "n"
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorate the class, or the function, that builds an operator."""

    def add(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        if name in OPERATORS:
            raise ValueError(f"an operator called {name!r} is registered already; choose another name")
        OPERATORS[name] = Operator(name, build, summary, citation, pixels)
        return build

    return add


def operator_names() -> tuple[str, ...]:
    """All names that ``conversion`` takes."""
    return (*OPERATORS, *XVOLUTIONS)


@dataclass(frozen=True)
class OperatorConfig(Conversion):
    """An operator of the register in the place of convolutions; it starts with new weights.

    Attributes:
        stages, kernel_sizes, names, kernel_size: those of ``Conversion``.
        operator: its name.
        options: its options, as JSON values.
    """

    operator: str = "conv"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.operator not in OPERATORS:
            raise ValueError(f"operator is {self.operator!r}; allowed are {', '.join(map(repr, OPERATORS))}")
        allowed = OPERATORS[self.operator].options
        unknown = [name for name in self.options if name not in allowed]
        if unknown:
            listed = f"its options are {', '.join(allowed)}" if allowed else "it has none"
            raise ValueError(f"the operator {self.operator!r} does not take {', '.join(unknown)}; {listed}")

    def replacement(self, conv: nn.Conv2d, norm: nn.Module | None) -> nn.Module:
        """The operator with the geometry of ``conv``; the norm that follows stays where it is."""
        conv = self.resized(conv)
        build = OPERATORS[self.operator].build
        return build(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
            **self.options,
        ).train(conv.training)


def conversion(
    operator: str,
    options: Mapping[str, Any] | None = None,
    placement: Conversion | None = None,
    xvolution: XVolutionConfig | None = None,
) -> Conversion:
    """The configuration that puts an operator, by its name, in the place of convolutions.

    Args:
        operator: one of ``operator_names()``.
        options: of the operator: fields of ``XVolutionConfig`` for the forms of X-volution; ``kernel_size`` is one of every
            operator's.
        placement: which convolutions; where its fields are None, any spatial one behind the stem.
        xvolution: what ``options`` of a form of X-volution start from.

    Raises:
        ValueError: an unknown operator or option.
    """
    given = dict(options or {})
    where = {item.name: getattr(placement, item.name) for item in fields(Conversion)} if placement is not None else {}
    if "kernel_size" in given:
        where["kernel_size"] = given.pop("kernel_size")
    if operator in XVOLUTIONS:
        base = {} if xvolution is None else {item.name: getattr(xvolution, item.name) for item in fields(xvolution)}
        return XVolutionConfig.from_dict({**base, **where, **XVOLUTIONS[operator], **given})
    if operator not in OPERATORS:
        raise ValueError(f"operator is {operator!r}; allowed are {', '.join(map(repr, operator_names()))}")
    return OperatorConfig(**where, operator=operator, options=given)


def conversion_from_dict(values: Mapping[str, Any]) -> Conversion:
    """The inverse of ``to_dict`` of either configuration.

    Raises:
        ValueError: a field, an operator or an option that this version does not know.
    """
    return OperatorConfig.from_dict(values) if "operator" in values else XVolutionConfig.from_dict(values)
