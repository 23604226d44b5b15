"""Full-dimensional dynamic convolution with one kernel (ODConv 1x): each image scales input channels, outputs and taps."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xvolution.attention.deployed import convolve_each, takes_kernels
from xvolution.conversion.register import register
from xvolution.convolutions import kernel_of
from xvolution.geometry import spatial
from xvolution.numerics import double
from xvolution.operators.around_convolution import WithBottleneck2d

#: Fewest channels that the weights are computed from, as the official code has it.
_LEAST = 16


@register(
    "odconv",
    "One kernel, scaled for each image along input channels, output channels and positions: ODConv with a single kernel.",
    "Li, Zhou, Yao: Omni-Dimensional Dynamic Convolution, ICLR 2022, arXiv 2209.07947",
)
class ODConv2d(WithBottleneck2d):
    """``y = α_f ⊙ Σ_δ α_δ W_δ (α_c ⊙ x_δ) + b``: weights α of output channels, positions and input channels for each image.

    Each is ``sigmoid(V relu(norm(U mean(x))) + v)`` with U and a batch norm in common. As in the official code, a 1x1 kernel has
    no weights of positions, and a depthwise convolution none of output channels beside those of its inputs.

    In the place of a convolution of a network it keeps the convolution with its weights, and the norm that follows. Several
    kernels (ODConv 4x) are left out: they multiply the parameters.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: those of
            ``nn.Conv2d``; the layers of the weights are not grouped.
        reduction: number of input channels for each hidden channel after U; there are at least 16 hidden channels.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W'). In training N must be at least 2, since the norm behind U sees one vector for each
        image.

    Raises:
        ValueError: ``reduction`` below 1, or a convolution that recomputes its weights in every call.
    """

    def _add(self, conv: nn.Conv2d, factory: dict[str, Any], reduction: int = 16) -> None:
        if reduction < 1:
            raise ValueError(f"reduction is {reduction}; it must be a positive integer")
        kernel = kernel_of(conv)
        if not (kernel.weight.is_meta or torch.equal(kernel.weight, double(conv.weight))):
            raise ValueError(
                f"{type(conv).__name__} computes its kernel from its weights in every call, but odconv "
                "scales the weights themselves; leave this convolution out by names or filter_fn"
            )
        self.geometry = kernel.geometry
        hidden, taps = max(conv.in_channels // reduction, _LEAST), prod(conv.kernel_size)
        depthwise = conv.in_channels == conv.out_channels == conv.groups
        self.squeeze = nn.Conv2d(conv.in_channels, hidden, 1, bias=False, **factory)
        self.squeeze_norm = nn.BatchNorm2d(hidden, **factory)
        self.of_inputs = nn.Conv2d(hidden, conv.in_channels, 1, **factory)
        self.of_outputs = None if depthwise else nn.Conv2d(hidden, conv.out_channels, 1, **factory)
        self.of_taps = None if taps == 1 else nn.Conv2d(hidden, taps, 1, **factory)

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Weights of input channels, output channels and taps: (N, C_in, 1, 1), (N, C_out, 1, 1) and (N, T, 1, 1), or None."""
        hidden = torch.relu(self.squeeze_norm(self.squeeze(x.mean(spatial(x), keepdim=True))))
        of_outputs, of_taps = (
            None if layer is None else torch.sigmoid(layer(hidden)) for layer in (self.of_outputs, self.of_taps)
        )
        return torch.sigmoid(self.of_inputs(hidden)), of_outputs, of_taps

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        of_inputs, of_outputs, of_taps = self.weights(x)
        y = self._convolve(of_inputs * x, of_taps)
        y = y if of_outputs is None else y * of_outputs
        if self.conv.bias is not None:
            y = y + self.conv.bias.to(y.dtype).reshape(-1, 1, 1)
        return self.conv_norm(y)

    def _convolve(self, x: Tensor, of_taps: Tensor | None) -> Tensor:
        """``Σ_δ α_δ W_δ x_δ`` without bias."""
        conv, geometry = self.conv, self.geometry
        if of_taps is None:
            return geometry.convolve(x, conv.weight, None, conv.groups)
        if takes_kernels(x):
            weight = conv.weight.to(of_taps.dtype)
            kernels = weight * of_taps.reshape(len(x), 1, 1, *conv.kernel_size)
            return convolve_each(geometry, x, kernels, kernels.new_zeros(len(x), conv.out_channels), conv.groups)
        # A graph for any batch size has no group for each image: the taps are weighed side by side, as channels of a 1x1.
        pixels = torch.stack(geometry.taps(geometry.pad(x)), 2) * of_taps.flatten(2).unsqueeze(1).unsqueeze(4)
        return F.conv2d(pixels.flatten(1, 2), conv.weight.flatten(1)[:, :, None, None], None, groups=conv.groups)
