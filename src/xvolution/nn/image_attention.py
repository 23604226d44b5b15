"""Attention with one query for the whole image: each channel of a convolution weighted by what the image shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xvolution.functional import per_channel
from xvolution.nn.geometry import Geometry, conv_over, image_mean, pointwise
from xvolution.nn.pixel_shift import GATES, convolve_window


class ImageAttention(nn.Module):
    """Maps (N, C_in, H, W) to (N, C_out, H', W')::

        a_0 = φ(q) ⊙ Σ_δ W^v_δ x_δ,      q = W^q mean(x) + b

    The values are read through the window by a matrix for each shift; the query is the image's, so that the weights φ(q) are one
    vector for each image. With the convolution beside it the branch is one convolution, whose kernel is
    ``W + diag(φ(q)) W^v`` for each image. ``separable`` values are one matrix for all shifts and one weight for each channel and
    shift, as the keys of ``PixelShiftAttention`` are, ``W^v_δ = w_δ ⊙ W^v``: fewer weights, and a shorter training step.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode: the geometry of the
            convolution beside it.
        gate: φ, ``"identity"``, ``"sigmoid"`` or ``"tanh"``.
        separable: read the values by a 1x1 convolution and a depthwise one.
        device, dtype: of the parameters.

    Raises:
        ValueError: an unknown gate.

    Source: the Hadamard branch of ``PixelShiftAttention`` with the image's query in the place of the pixel's. Attention that
    mixes kernels is from Chen et al., Dynamic Convolution: Attention over Convolution Kernels, arXiv 1912.03458, 2020.
    """

    dims: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 1,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        *,
        gate: str = "sigmoid",
        separable: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if gate not in GATES:
            raise ValueError(f"gate is {gate!r}; allowed are {', '.join(map(repr, GATES))}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        geometry = Geometry.create(kernel_size, stride, padding, dilation, padding_mode, self.dims)
        self.gate = gate
        self.query = pointwise(self.dims, in_channels, out_channels, groups=groups, **factory)
        self.window = None
        if separable:
            self.value = pointwise(self.dims, in_channels, out_channels, groups=groups, bias=False, **factory)
            self.window = conv_over(geometry, out_channels, out_channels, groups=out_channels, bias=False, **factory)
        else:
            self.value = conv_over(geometry, in_channels, out_channels, groups=groups, bias=False, **factory)

    @property
    def value_weight(self) -> Tensor:
        """``W^v_δ``: (C_out, C_in / groups, kh, kw)."""
        value: Tensor = self.value.weight
        return value if self.window is None else per_channel(value.flatten(1), value) * self.window.weight

    def weights(self, x: Tensor) -> Tensor:
        """φ(q): (N, C_in, H, W) -> (N, C_out, 1, 1)."""
        return GATES[self.gate](self.query(image_mean(x)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        value = self.value(x)
        return self.weights(x) * (value if self.window is None else convolve_window(self.window, value))

    def extra_repr(self) -> str:
        return f"gate={self.gate}, separable={self.window is not None}"


class ImageAttention1d(ImageAttention):
    """``ImageAttention`` of signals: (N, C_in, L) -> (N, C_out, L')."""

    dims = 1


class ImageAttention2d(ImageAttention):
    """``ImageAttention`` of images: (N, C_in, H, W) -> (N, C_out, H', W')."""

    dims = 2


class ImageAttention3d(ImageAttention):
    """``ImageAttention`` of videos and volumes: (N, C_in, D, H, W) -> (N, C_out, D', H', W')."""

    dims = 3
