"""The interface of every attention branch (frozen configuration, module, folded form), and the register of branches by name.

A branch is one file of this folder. Its configuration is a frozen dataclass, whose fields are the branch's options and whose
docstring describes them, for readers and for ``--help``. ``register`` gives it its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from math import ceil
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from xvolution.attention.folded import Folded, FoldedConstant, StaysAttention
from xvolution.folding import FoldedConvolution, NormLayer
from xvolution.geometry import ConvSite, Geometry, as_tuple, per_channel
from xvolution.numerics import GATES, add, double

#: Of a branch's window: its side length, one for each dimension, ``"conv"`` for that of the convolution, or None to choose.
Window = int | tuple[int, ...] | Literal["conv"] | None

Config = TypeVar("Config", bound="type[AttentionConfig]")

#: The configurations of all branches by name.
ATTENTION: dict[str, type[AttentionConfig]] = {}


@dataclass(frozen=True)
class AttentionConfig(ABC):
    """The options of an attention branch; ``build`` makes the branch."""

    #: What the branch is called by; ``register`` sets it.
    name: ClassVar[str]

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        self.check()

    def check(self) -> None:  # noqa: B027 - a branch whose every option is allowed has nothing to check
        """Raise ValueError, with a sentence, for an option whose value is not allowed."""

    @abstractmethod
    def build(self, site: ConvSite, norm_layer: NormLayer | None = None) -> AttentionBranch:
        """The branch beside a convolution; ``norm_layer`` is what the operator normalizes with.

        Raises:
            ValueError: an option does not fit the convolution, such as heads that do not divide its channels.
        """

    def narrower(self) -> AttentionConfig | None:
        """The same branch with fewer attention channels, if their number was not given; else None."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON values, with the branch's name as ``"type"``."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"type": self.name} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def register(name: str) -> Callable[[Config], Config]:
    """Decorate the configuration of a branch with the name that ``attention=`` and the command line take.

    Raises:
        ValueError: the name is taken.
    """

    def add_to_register(config: Config) -> Config:
        if name in ATTENTION:
            raise ValueError(f"an attention branch called {name!r} is registered already; choose another name")
        config.name = name
        ATTENTION[name] = config
        return config

    return add_to_register


def attention_config(given: str | AttentionConfig | Mapping[str, Any]) -> AttentionConfig:
    """The configuration for a name, or for the result of ``to_dict``.

    Raises:
        ValueError: there is no such branch, or it has no such option.
    """
    if isinstance(given, AttentionConfig):
        return given
    values = {"type": given} if isinstance(given, str) else dict(given)
    name = values.pop("type", None)
    if name not in ATTENTION:
        raise ValueError(
            f"attention is {name!r}; allowed are {', '.join(map(repr, ATTENTION))}, a configuration such as PixelShift(), a "
            "module, or None"
        )
    return ATTENTION[name](**checked_options(name, values, [field.name for field in fields(ATTENTION[name])]))


def checked_options(name: str, given: Mapping[str, Any], allowed: list[str]) -> dict[str, Any]:
    """``given``, after checking that each option is one of ``name``'s.

    Raises:
        ValueError: ``name`` does not have an option; the message lists its options.
    """
    foreign = [option for option in given if option not in allowed]
    if foreign:
        listed = f"its options are {', '.join(allowed)}" if allowed else "it has none"
        raise ValueError(f"{name!r} does not take {', '.join(foreign)}; {listed}")
    return dict(given)


class AttentionBranch(nn.Module, ABC):
    """An attention branch: maps (N, C_in, H, W) to (N, C_out, H', W'), the output shape of the convolution beside it.

    Args:
        config: the options of the branch.
        site: the convolution beside it.
    """

    #: Whether ``forward`` takes the output of the convolution, before its norm, as a second argument.
    reads_convolution: ClassVar[bool] = False

    def __init__(self, config: AttentionConfig, site: ConvSite) -> None:
        super().__init__()
        self.config = config
        self.dims, self.groups = site.dims, site.groups

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""

    def attend(self, x: Tensor, value: Tensor) -> Tensor:
        """The branch on the input x and on the convolution's output, which some branches read."""
        return self(x, value) if self.reads_convolution else self(x)

    def add_onto(self, y: Tensor, x: Tensor, value: Tensor, norm: nn.Module) -> Tensor:
        """``y + norm(attention)``, (N, C_out, H', W') in the dtype of ``y``."""
        return add(y, norm(self.attend(x, value)))

    @property
    def projection(self) -> nn.Module | None:
        """The layer that reads the branch's products of query and keys, for analysis; None if there are none."""
        return None

    def zero_init_(self) -> None:
        """Start with zero effect if no norm follows that can be zeroed: zero the weights on which the output depends linearly."""
        zero_(getattr(self, "value", None))

    def gates(self) -> Mapping[str, int]:
        """The submodules whose outputs the gate acts on, with their channels, if the branch is a convolution once these return
        the same of every image and pixel, and ``image_terms`` are zero; none where it is not."""
        return {}

    def image_terms(self) -> tuple[nn.Parameter, ...]:
        """The weights of the terms that depend on the image but not on a gate."""
        return ()

    def settle_(self, logits: Mapping[str, Tensor]) -> None:
        """Make the gates constant and exclude the weights that produce them from training.

        Args:
            logits: of each of ``gates``, (C,), before φ.

        Raises:
            ValueError: no constant gate makes the branch a convolution.
        """
        raise ValueError(f"{type(self).__name__} does not become a convolution when its gate is constant")

    def scale_output_(self, scale: Tensor) -> None:
        """Multiply the output of the branch by (C_out,), in the rows of the value projection."""
        value: Any = self.value
        value.weight.copy_(double(value.weight) * per_channel(scale[:, None], value.weight))
        if value.bias is not None:
            value.bias.copy_(double(value.bias) * scale)

    def fold(self, convolution: FoldedConvolution, norm: nn.Module) -> Folded:
        """The folded operator of this branch, its norm and ``convolution``; by default the branch does not merge."""
        return StaysAttention(convolution, self, None, norm)

    def fold_as_attention(self, convolution: FoldedConvolution, norm: nn.Module) -> StaysAttention:
        """Fold the norm into the branch's weights without merging the branch; for branches with a correct ``scale_output_``."""
        scale, norm = convolution.absorb(norm)
        return StaysAttention(convolution, self, scale, norm)

    def extra_repr(self) -> str:
        options = {field.name: getattr(self.config, field.name) for field in fields(self.config)}
        return ", ".join(f"{name}={value}" for name, value in options.items())


class _AnyModule:
    """A user's own module, with the methods by which the operator calls a branch."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def attend(self, x: Tensor, value: Tensor) -> Tensor:
        return self.module(x)

    def add_onto(self, y: Tensor, x: Tensor, value: Tensor, norm: nn.Module) -> Tensor:
        attended = norm(self.module(x))
        if attended.shape != y.shape:
            raise ValueError(
                f"the attention branch returned {tuple(attended.shape)}, the convolution {tuple(y.shape)}; "
                "an attention module must map (N, C_in, H, W) to the convolution's output shape"
            )
        return add(y, attended)

    @property
    def projection(self) -> nn.Module | None:
        return None

    def zero_init_(self) -> None:
        zero_(getattr(self.module, "value", None))

    def fold(self, convolution: FoldedConvolution, norm: nn.Module) -> Folded:
        return StaysAttention(convolution, self.module, None, norm)


def methods_of(attention: nn.Module) -> AttentionBranch | _AnyModule:
    """The methods by which the operator calls a branch or any other module."""
    return attention if isinstance(attention, AttentionBranch) else _AnyModule(attention)


def fold_attention(attention: nn.Module, convolution: FoldedConvolution, norm: nn.Module) -> Folded:
    """The folded operator. A branch that a subclass or a patch has changed does not merge, like any other module."""
    if isinstance(attention, AttentionBranch) and not is_changed(attention):
        folded = attention.fold(convolution, norm)
        static = folded.static()
        return folded if static is None else FoldedConstant(static, folded)
    return _AnyModule(attention).fold(convolution, norm)


def is_changed(branch: AttentionBranch) -> bool:
    """Whether a subclass or an attribute of the module replaces a method of the class whose ``fold`` would be called."""
    line = type(branch).__mro__
    owner = next(index for index, cls in enumerate(line) if "fold" in vars(cls))
    replaced = {name for cls in line[:owner] for name in vars(cls)} | set(vars(branch))
    harmless = {"config", "extra_repr", "_abc_impl"}  # the last one is of every class whose parent is an ABC
    return any(hasattr(line[owner], name) for name in replaced - harmless if not name.startswith("__"))


@torch.no_grad()
def fix_(layer: nn.Module, bias: Any = None, constant: Tensor | None = None) -> None:
    """Zero the parameters of a layer, write ``constant`` into ``bias``, and exclude all of them from training."""
    for parameter in layer.parameters():
        parameter.zero_()
    if constant is not None:
        bias.copy_(constant)
    for parameter in (*layer.parameters(), *([] if bias is None else [bias])):
        parameter.requires_grad_(False)
        parameter.grad = None


def zero_(last: Any) -> None:
    """Zero the parameters of the layer that a branch ends with.

    Raises:
        ValueError: there is no such layer, or it has no weight.
    """
    if getattr(last, "weight", None) is None:
        raise ValueError(
            "zero_init needs a last layer with a weight: the branch has none; pass zero_init=False, or a norm_layer with "
            "affine parameters"
        )
    for parameter in last.parameters():
        nn.init.zeros_(parameter)


def attention_channels(out_channels: int, ratio: float, groups: int, heads: int = 1) -> int:
    """``ratio`` times the output channels, rounded up to whole groups and heads."""
    multiple = groups * heads
    return multiple * ceil(out_channels * ratio / multiple)


def window_of(window: Window, geometry: Geometry) -> tuple[int, ...]:
    """The sizes of a branch's window: the convolution's for ``"conv"``; for None too, but 3 beside a 1x1 convolution.

    Beside a 1x1 convolution only the branch's own window covers a pixel's neighbours.
    """
    if window is None:
        return (3,) * geometry.dims if geometry.is_pointwise else geometry.kernel_size
    return geometry.kernel_size if isinstance(window, str) else as_tuple(window, geometry.dims)


def check_ratio(ratio: float) -> None:
    """Raise ValueError unless a ratio of attention channels is positive."""
    if not ratio > 0:
        raise ValueError(f"attention_ratio is {ratio}; it must be a positive number such as 1/4")


def check_gate(gate: str, allowed: Mapping[str, Any] | tuple[str, ...] = tuple(GATES)) -> None:
    """Raise ValueError unless there is such a gate."""
    if gate not in allowed:
        raise ValueError(f"gate is {gate!r}; allowed are {', '.join(map(repr, allowed))}")


def check_window(window: Window) -> None:
    """Raise ValueError unless a window has positive sizes, or those of the convolution."""
    if window is None or window == "conv":
        return
    if isinstance(window, str) or min([window] if isinstance(window, int) else window, default=0) < 1:
        raise ValueError(f"window is {window!r}; it must be a positive integer, one for each dimension, or 'conv'")


def check_heads(num_heads: int, out_channels: int, groups: int) -> None:
    """Raise ValueError unless heads, which are counted in each group, share its output channels evenly."""
    if num_heads < 1 or (out_channels // groups) % num_heads:
        raise ValueError(
            f"num_heads is {num_heads}; it must be positive and divide the {out_channels // groups} output channels of each group"
        )


def pooled_weight(channels: int, start: float | None, factory: dict[str, Any]) -> nn.Parameter | None:
    """The weights (A,) of a term over all pixels, initialized with ``start``; None if there is no such term."""
    return None if start is None else nn.Parameter(torch.full((channels,), float(start), **factory))
