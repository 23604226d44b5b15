"""Operators with folded norms: the layouts in which each can be deployed, and its kernel at a pixel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.attention.deployed import ConstantConv, DeployedOperator, MergedConv, TwoBranchConv, TwoBranchOnConv
from xvolution.folding import FoldedConvolution
from xvolution.geometry import per_channel
from xvolution.memory_format import with_format_of


class LayoutError(ValueError):
    """An operator has no such layout."""


@dataclass
class Folded(ABC):
    """An operator in eval mode as plain fp64 tensors, with every norm that folds multiplied in; a subclass for each form.

    Attributes:
        convolution: its convolution branch, with the shift of the attention's norm in its bias.
    """

    convolution: FoldedConvolution

    @property
    @abstractmethod
    def layouts(self) -> tuple[str, ...]:
        """The layouts in which it can be deployed, the one with the fewest multiplications first."""

    @abstractmethod
    def build(self, layout: str, factory: dict[str, Any]) -> DeployedOperator:
        """The deployed module in one of ``layouts``."""

    def deployed(self, layout: str, like: Tensor) -> DeployedOperator:
        """The deployed module in eval mode, with the device, the dtype and the memory format of the weight ``like``.

        Raises:
            LayoutError: the operator has no such layout.
        """
        if layout not in self.layouts:
            raise LayoutError(f"it has no layout {layout!r}; it has {', '.join(map(repr, self.layouts))}")
        device = self.convolution.weight.device
        with torch.no_grad():
            module = self.build(layout, {"device": device, "dtype": like.dtype}).eval()
        if device != like.device:  # it was folded on the CPU
            module = module.to(like.device)
        return with_format_of(like, module)

    def kernel_at(self, x: Tensor, position: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The kernel that the operator applies at one output pixel, and the bias there.

        Args:
            x: (N, C_in, H, W), fp64.
            position: (row, column) of the output pixel.

        Returns:
            (N, C_out, C_in / groups, kh, kw) and (N, C_out), fp64.

        Raises:
            ValueError: the operator is not a dynamic convolution over a window, or the position is outside of the output.
        """
        raise ValueError(
            f"{self.description} is not a dynamic convolution over a window, so it has no kernel at a pixel"
        )

    def static(self) -> FoldedConvolution | None:
        """The equivalent convolution for all images; None if there is none or it is not known."""
        return None

    @property
    def description(self) -> str:
        """The operator's description in errors."""
        return "this operator"

    def require_folded(self, *norms: nn.Module) -> None:
        """Raise ValueError where one of the norms, or that of the convolution, was not multiplied in."""
        kept = [type(norm).__name__ for norm in (self.convolution.norm, *norms) if type(norm) is not nn.Identity]
        if kept:
            raise ValueError(
                f"{kept[0]} does not fold into a kernel, because it depends on the whole feature map; use batch norm"
            )


@dataclass
class FoldedWithoutAttention(Folded):
    """Convolutions alone: one convolution."""

    @property
    def layouts(self) -> tuple[str, ...]:
        return ("single",)

    def build(self, layout: str, factory: dict[str, Any]) -> DeployedOperator:
        return MergedConv(self.convolution, factory)

    def static(self) -> FoldedConvolution | None:
        return self.convolution if type(self.convolution.norm) is nn.Identity else None

    def kernel_at(self, x: Tensor, position: Sequence[int]) -> tuple[Tensor, Tensor]:
        raise ValueError(
            "the operator has no attention, so its kernel is the same at every pixel; re-parameterize it and read conv.weight"
        )


@dataclass
class FoldedConstant(Folded):
    """Attention with a constant gate: ``convolution`` is the whole operator, ``varying`` its form with a gate."""

    varying: Folded

    @property
    def layouts(self) -> tuple[str, ...]:
        return ("conv", *self.varying.layouts)

    def build(self, layout: str, factory: dict[str, Any]) -> DeployedOperator:
        return ConstantConv(self.convolution, factory) if layout == "conv" else self.varying.build(layout, factory)

    def static(self) -> FoldedConvolution | None:
        return self.convolution

    def kernel_at(self, x: Tensor, position: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.varying.kernel_at(x, position)


@dataclass
class StaysAttention(Folded):
    """The folded convolution beside attention that does not merge with it; the default for every branch and any module.

    Attributes:
        attention: the branch.
        scale: (C_out,), of the attention's norm, to be multiplied into the branch's weights; None where it stays a module.
        norm: what is left of that norm.
    """

    attention: Any
    scale: Tensor | None
    norm: nn.Module

    @property
    def description(self) -> str:
        return f"the branch {type(self.attention).__name__}"

    @property
    def layouts(self) -> tuple[str, ...]:
        return ("split",)

    def build(self, layout: str, factory: dict[str, Any]) -> DeployedOperator:
        form = TwoBranchOnConv if getattr(self.attention, "reads_convolution", False) else TwoBranchConv
        return self.scaled(form(self.convolution, self.attention, self.norm, factory))

    def scaled(self, module: Any) -> DeployedOperator:
        """``module`` with the scale in the weights of its copy of the branch."""
        if self.scale is not None:
            module.attention.scale_output_(self.scale)
        return module

    def kernel_scale(self) -> Tensor:
        """``scale``, where all norms folded; raises ValueError elsewhere."""
        self.require_folded(self.norm)
        assert self.scale is not None
        return self.scale


def pixel_of(maps: Tensor, position: Sequence[int]) -> Tensor:
    """(N, C, H', W') -> (N, C) at one position.

    Raises:
        ValueError: the position is outside of the maps.
    """
    size = tuple(maps.shape[2:])
    if len(position) != len(size) or not all(0 <= index < n for index, n in zip(position, size, strict=True)):
        raise ValueError(f"position {tuple(position)} is outside of the output of {' x '.join(map(str, size))} pixels")
    index: Any = (slice(None), slice(None), *position)
    return maps[index]


def query_at(
    x: Tensor, weight: Tensor, bias: Tensor, convolution: FoldedConvolution, position: Sequence[int]
) -> Tensor:
    """q_0 (N, A): the 1x1 convolution of the centre pixel of the window at ``position``."""
    centre = convolution.geometry.centre()
    return pixel_of(centre.convolve(x, per_channel(weight.flatten(1), x), bias, convolution.groups), position)
