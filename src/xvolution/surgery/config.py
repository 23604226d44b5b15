"""What to put in the place of a convolution, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from torch import nn

_PLACEMENT = ("stages", "kernel_sizes", "names")


@dataclass(frozen=True)
class XVolutionConfig:
    """Options of the operator and the convolutions that it replaces.

    Attributes:
        attention: ``"pssa"``, ``"linear"``, ``"global"``, or a function that takes the ``nn.Conv2d`` to be replaced and returns
            an attention module of the same input and output shapes.
        attention_ratio, similarity, heads, gate, window, shift_distance, global_term, query_norm, window_norm: those of
            ``XVolution2d``; None takes the operator's default.
        norm_layer: normalization of the attention branch: the name of a class in ``torch.nn``, a function of the number of
            channels, or None.
        zero_init: start the attention at zero effect, so that the converted model computes what it computed before.
        stages: stages of the network to convert, counted from 1.
        kernel_sizes: side lengths of the (square) kernels to convert; spatial ones (> 1) when None.
        names: shell patterns of module names to convert, such as ``"layer3.*.conv2"``.
    """

    attention: str | Callable[[nn.Conv2d], nn.Module] = "pssa"
    attention_ratio: float = 0.25
    similarity: Literal["hadamard", "dot"] = "hadamard"
    heads: int = 1
    gate: Literal["identity", "sigmoid", "tanh"] | None = None
    window: int | None = None
    shift_distance: int | tuple[int, ...] | None = None
    global_term: bool | None = None
    query_norm: bool | None = None
    window_norm: bool | None = None
    norm_layer: str | Callable[[int], nn.Module] | None = "BatchNorm2d"
    zero_init: bool = True
    stages: tuple[int, ...] | None = None
    kernel_sizes: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.norm_layer, str) and not hasattr(nn, self.norm_layer):
            raise ValueError(
                f"norm_layer is {self.norm_layer!r}; give the name of a class in torch.nn, such as 'BatchNorm2d'"
            )
        for name in (*_PLACEMENT, "shift_distance"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))

    def operator_options(self, conv: nn.Conv2d) -> dict[str, Any]:
        """Keyword options of ``XVolution2d`` in the place of ``conv``."""
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _PLACEMENT}
        if callable(self.attention):
            options["attention"] = self.attention(conv)
        if isinstance(self.norm_layer, str):
            options["norm_layer"] = getattr(nn, self.norm_layer)
        return options

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON values.

        Raises:
            ValueError: a field holds a function, which has no JSON form.
        """
        values = asdict(self)
        functions = [name for name, value in values.items() if callable(value)]
        if functions:
            raise ValueError(
                f"{', '.join(functions)} of this configuration is a function and cannot be stored; use a name"
            )
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> XVolutionConfig:
        """The inverse of ``to_dict``.

        Raises:
            ValueError: a field that this version does not know.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(
                f"the configuration has unknown fields {', '.join(sorted(unknown))}; it may be of a newer version"
            )
        return cls(**values)
