"""Attention with one query for the whole image: the channels of a convolution weighted by what the image shows."""

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

        a_0 = φ(q) ⊙ Σ_δ W^v_δ x_δ,      q = W^q mean(x) + b^q

    The values are read through the window by a matrix for each shift; the query is the image's, so that the weights φ(q) are one
    vector for each image. With the convolution beside it the branch is one convolution, whose kernel is
    ``W + diag(φ(q)) W^v`` for each image. ``separable`` values are one matrix for all shifts and one weight for each channel and
    shift, as the keys of ``PixelShiftAttention`` are, ``W^v_δ = w_δ ⊙ W^v``: fewer weights, and a shorter training step.

    With ``channel_keys`` the channels that are read are weighted too, ``a_0 = φ(q) ⊙ Σ_δ W^v_δ (φ(k) ⊙ x_δ)``, with ``k = W^k
    mean(x) + b^k``: what an output channel hears of an input channel is weighed by the product of its query and of the other's
    key. The kernel is then ``W + diag(φ(q)) W^v diag(φ(k))``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode: the geometry of the
            convolution beside it.
        gate: φ, ``"identity"``, ``"sigmoid"`` or ``"tanh"``.
        separable: read the values by a 1x1 convolution and a depthwise one.
        channel_keys: weigh the input channels as well.
        device, dtype: of the parameters.

    Raises:
        ValueError: an unknown gate.

    Source: the Hadamard branch of ``PixelShiftAttention`` with the image's query in the place of the pixel's. Attention that
    mixes kernels is from Chen et al., Dynamic Convolution: Attention over Convolution Kernels, arXiv 1912.03458, 2020; weights
    for the channels that a kernel reads and writes from Li, Zhou and Yao, Omni-Dimensional Dynamic Convolution, arXiv
    2209.07947, 2022.
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
        channel_keys: bool = False,
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
        self.key = pointwise(self.dims, in_channels, in_channels, groups=groups, **factory) if channel_keys else None
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

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """φ(q) and φ(k), or None without keys: (N, C_in, H, W) -> (N, C_out, 1, 1) and (N, C_in, 1, 1)."""
        gate, mean = GATES[self.gate], image_mean(x)
        return gate(self.query(mean)), None if self.key is None else gate(self.key(mean))

    def kernels(self, x: Tensor) -> Tensor:
        """``diag(φ(q)) W^v diag(φ(k))`` of each image: (N, C_in, H, W) -> (N, C_out, C_in / groups, kh, kw)."""
        of_outputs, of_inputs = self.weights(x)
        kernels = of_outputs.unsqueeze(2) * self.value_weight.to(x.dtype)
        if of_inputs is None:
            return kernels
        groups = self.query.groups
        return (kernels.unflatten(1, (groups, -1)) * of_inputs.unflatten(1, (groups, 1, -1))).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        of_outputs, of_inputs = self.weights(x)
        value = self.value(x if of_inputs is None else of_inputs * x)
        return of_outputs * (value if self.window is None else convolve_window(self.window, value))

    def extra_repr(self) -> str:
        return f"gate={self.gate}, separable={self.window is not None}, channel_keys={self.key is not None}"


class ImageAttention1d(ImageAttention):
    """``ImageAttention`` of signals: (N, C_in, L) -> (N, C_out, L')."""

    dims = 1


class ImageAttention2d(ImageAttention):
    """``ImageAttention`` of images: (N, C_in, H, W) -> (N, C_out, H', W')."""

    dims = 2


class ImageAttention3d(ImageAttention):
    """``ImageAttention`` of videos and volumes: (N, C_in, D, H, W) -> (N, C_out, D', H', W')."""

    dims = 3
