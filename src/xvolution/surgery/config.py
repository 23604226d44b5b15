"""What to put in the place of a convolution, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

from torch import nn

from xvolution.nn import XVOLUTIONS
from xvolution.nn.geometry import CONVOLUTIONS

Configuration = TypeVar("Configuration", bound="Conversion")


@dataclass(frozen=True)
class Conversion:
    """Which convolutions of a network are replaced; a subclass says by what.

    Attributes:
        stages: stages of the network to convert, counted from 1.
        kernel_sizes: side lengths of the (square) kernels to convert; spatial ones (> 1) when None.
        names: shell patterns of module names to convert, such as ``"layer3.*.conv2"``.
        kernel_size: side length of the kernel in the place of each; that of the replaced convolution when None. A kernel of
            another size starts with new weights.
    """

    stages: tuple[int, ...] | None = None
    kernel_sizes: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None
    kernel_size: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))

    @property
    def takes_norm(self) -> bool:
        """Whether the norm that follows a convolution moves into its replacement."""
        return False

    @property
    def keeps_outputs(self) -> bool:
        """Whether the converted network computes what it computed before, so that this is checked."""
        return False

    def replacement(self, conv: Any, norm: nn.Module | None) -> nn.Module:
        """What takes the place of ``conv``; ``norm`` is the one that follows it, where ``takes_norm`` asks for it."""
        raise TypeError(f"{type(self).__name__} does not say what takes the place of a convolution")

    def resized(self, conv: Any) -> Any:
        """``conv``, or a new convolution of the same output size whose kernel has the side length ``kernel_size``."""
        side = self.kernel_size
        if side is None or set(conv.kernel_size) == {side}:
            return conv
        if isinstance(conv.padding, str):
            padding: Any = conv.padding
        else:
            grown = [d * (side - k) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
            if any(pixels % 2 or p + pixels // 2 < 0 for p, pixels in zip(conv.padding, grown, strict=True)):
                raise ValueError(
                    f"kernel_size={side} cannot take the place of a kernel of {conv.kernel_size} with padding {conv.padding} "
                    "around the same pixels; give another size, or leave this convolution out"
                )
            padding = tuple(p + pixels // 2 for p, pixels in zip(conv.padding, grown, strict=True))
        geometry: tuple[Any, ...] = (side, conv.stride, padding, conv.dilation, conv.groups, conv.bias is not None)
        options: dict[str, Any] = {"padding_mode": conv.padding_mode}
        options |= {"device": conv.weight.device, "dtype": conv.weight.dtype}
        resized = CONVOLUTIONS[len(conv.kernel_size)](conv.in_channels, conv.out_channels, *geometry, **options)
        return resized.train(conv.training)

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
    def from_dict(cls: type[Configuration], values: Mapping[str, Any]) -> Configuration:
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


@dataclass(frozen=True)
class XVolutionConfig(Conversion):
    """Options of the operator and the convolutions that it replaces.

    Attributes:
        stages, kernel_sizes, names, kernel_size: those of ``Conversion``.
        attention: ``"pssa"``, ``"linear"``, ``"global"``, ``"image"``, ``"shared"``, None, or a function that takes the
            ``nn.Conv2d`` to be replaced and returns an attention module of the same input and output shapes.
        num_conv_branches, attention_ratio, similarity, heads, gate, window, shift_distance, separable, channel_keys,
            query_key_norm, query_context, global_term, global_init, query_norm, window_norm: those of ``XVolution2d``; None takes
            the operator's default.
        norm_layer: normalization of the attention branch and of further convolutions: the name of a class in ``torch.nn``, a
            function of the number of channels, or None.
        zero_init: start the attention and further convolutions at zero effect, so that the converted model computes what it
            computed before.
    """

    num_conv_branches: int = 1
    attention: str | Callable[[Any], nn.Module] | None = "pssa"
    attention_ratio: float = 0.25
    similarity: Literal["hadamard", "dot"] = "hadamard"
    heads: int = 1
    gate: Literal["identity", "sigmoid", "tanh", "one"] | None = None
    window: int | None = None
    shift_distance: int | tuple[int, ...] | None = None
    separable: bool = False
    channel_keys: bool = False
    query_key_norm: bool = False
    query_context: bool | None = None
    global_term: bool | None = None
    global_init: float | None = None
    query_norm: bool | None = None
    window_norm: bool | None = None
    norm_layer: str | Callable[[int], nn.Module] | None = "BatchNorm2d"
    zero_init: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.norm_layer, str) and not hasattr(nn, self.norm_layer):
            raise ValueError(
                f"norm_layer is {self.norm_layer!r}; give the name of a class in torch.nn, such as 'BatchNorm2d'"
            )

    @property
    def takes_norm(self) -> bool:
        return True

    @property
    def keeps_outputs(self) -> bool:
        return self.zero_init and self.kernel_size is None

    def replacement(self, conv: Any, norm: nn.Module | None) -> nn.Module:
        """An X-volution around ``conv`` and its norm, which are kept, not copied."""
        conv = self.resized(conv)
        placement = {field.name for field in fields(Conversion)}
        options = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in placement}
        if callable(self.attention):
            options["attention"] = self.attention(conv)
        if isinstance(self.norm_layer, str):
            options["norm_layer"] = getattr(nn, self.norm_layer)
        return XVOLUTIONS[len(conv.kernel_size)].from_conv(conv, conv_norm=norm, **options)
