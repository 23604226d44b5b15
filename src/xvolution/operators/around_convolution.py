"""The base of operators that keep the convolution that they replace, and the norm that follows it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from xvolution.convolutions import geometry_of
from xvolution.memory_format import with_format_of

#: Fewest channels between the two layers of a bottleneck, as timm has it.
_LEAST = 8


class AroundConvolution2d(nn.Module, ABC):
    """A convolution ``conv`` and the norm ``conv_norm`` after it, with further parts from a subclass.

    In the place of a convolution of a network it keeps the convolution with its weights, and the norm that follows, so that
    the norm still folds into the convolution.
    """

    conv: Any
    conv_norm: nn.Module

    @classmethod
    def from_conv(cls, conv: Any, conv_norm: nn.Module | None = None, **options: Any) -> AroundConvolution2d:
        """The operator around an existing convolution and the norm that follows it; both are kept, not copied.

        Args:
            conv: the convolution; its device, dtype, memory format and mode become the operator's.
            conv_norm: the norm behind the convolution; none when None. It keeps its mode: a frozen norm stays frozen.
            options: those of the class.

        Raises:
            ValueError: a convolution of another number of dimensions, one that computes no plain convolution, or an option that
                the class refuses.
        """
        if not isinstance(conv, nn.Conv2d):
            raise ValueError(f"{cls.__name__} replaces an nn.Conv2d, not a {type(conv).__name__}")
        geometry_of(conv)
        operator = cls.__new__(cls)
        nn.Module.__init__(operator)
        operator._assemble(conv, nn.Identity() if conv_norm is None else conv_norm, **options)
        operator.training = conv.training
        for name, added in operator.named_children():
            if name not in ("conv", "conv_norm"):
                with_format_of(conv.weight, added).train(conv.training)
        return operator

    def _assemble(self, conv: nn.Conv2d, conv_norm: nn.Module, **options: Any) -> None:
        self.conv, self.conv_norm = conv, conv_norm
        self._add(conv, {"device": conv.weight.device, "dtype": conv.weight.dtype}, **options)

    @abstractmethod
    def _add(self, conv: nn.Conv2d, factory: dict[str, Any], *args: Any, **options: Any) -> None:
        """Build the further parts; a subclass has its options instead of ``args`` and ``options``.

        Raises:
            ValueError: an option that is not allowed.
        """

    def convolved(self, x: Tensor) -> Tensor:
        """The convolution with its norm: (N, C_in, H, W) -> (N, C_out, H', W')."""
        return self.conv_norm(self.conv(x))


class WithBottleneck2d(AroundConvolution2d):
    """An ``AroundConvolution2d`` with one option, the ``reduction`` of channels in a bottleneck."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        reduction: int = 16,
    ) -> None:
        super().__init__()
        geometry: tuple[Any, ...] = (kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype)
        self._assemble(nn.Conv2d(in_channels, out_channels, *geometry), nn.Identity(), reduction=reduction)


def hidden_channels(channels: int, reduction: int) -> int:
    """Channels between the two layers of a bottleneck: ``channels / reduction``, and 8 at least.

    Raises:
        ValueError: ``reduction`` below 1.
    """
    if reduction < 1:
        raise ValueError(f"reduction is {reduction}; it must be a positive integer")
    return max(channels // reduction, _LEAST)
