"""ACmix: a self-attention and a convolution that share their 1x1 projections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.conversion.register import register
from xvolution.convolutions import conv_over
from xvolution.geometry import Geometry
from xvolution.operators.local_attention import check_ungrouped, geometry_of, taps_of, weighted_sum, window_scores


@register(
    "acmix",
    "Window self-attention and a convolution that share three 1x1 projections, summed with two learned weights.",
    "Pan, Ge, Lu, Song, Chen, Huang, Huang: On the Integration of Self-Attention and Convolution, CVPR 2022, "
    "arXiv 2111.14556",
)
class ACmix2d(nn.Module):
    """``y = α attention(q, k, v) + β convolution(q, k, v)`` with ``q, k, v`` three 1x1 convolutions of x.

    Attention path, in each head, over a window A of its own size, with ``p`` a 1x1 convolution of the pixel's location::

        Σ_{δ∈A} softmax_δ( <q_0, k_δ + p_0 - p_δ> / √d ) v_δ

    Convolution path: for each channel of a head, a fully connected layer makes K² maps of the 3 · heads maps of q, k and v,
    and a grouped convolution shifts and sums them. It begins as exact shifts, map δ moved by δ, and is learned from there;
    at the beginning the path is therefore a convolution of kernel size K with a kernel of low rank.

    At the border the attention reads the reflected map, as the authors' code does, or the nearest pixel where the map is not
    larger than that padding; the convolution path pads as ``padding_mode`` says. The authors' code has the layout of
    ``bias=True``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, padding_mode, device, dtype: those of ``nn.Conv2d``,
            of the convolution path; stride and dilation are the attention's too.
        groups: must be 1.
        bias: of the three projections.
        window: side length of the attention window in pixels, 7 in the paper.
        num_heads: number of attention heads; by default 4, the authors' number, or its largest divisor that divides the
            output channels.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W').

    Raises:
        ValueError: groups other than 1, heads that do not divide the output channels, a window that is not odd.
    """

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
        window: int = 7,
        num_heads: int | None = None,
    ) -> None:
        super().__init__()
        geometry = geometry_of(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        check_ungrouped(groups, "acmix")
        heads = gcd(4, out_channels) if num_heads is None else num_heads
        if heads < 1 or out_channels % heads:
            raise ValueError(f"num_heads is {heads}; it must be positive and divide the {out_channels} output channels")
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window is {window}; it must be odd and positive, such as 7")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        head_channels, taps = out_channels // heads, prod(geometry.kernel_size)
        self.heads = heads
        self.window = geometry.recentred((window, window), geometry.dilation)
        self.project = nn.Conv2d(in_channels, 3 * out_channels, 1, bias=bias, **factory)
        self.position = nn.Conv2d(2, head_channels, 1, **factory)
        self.mix = nn.Linear(3 * heads, taps, bias=False, **factory)
        options: dict[str, Any] = {"groups": head_channels, "bias": False, **factory}
        self.shift = conv_over(geometry, head_channels * taps, out_channels, **options)
        self.alpha = nn.Parameter(torch.full((1,), 0.5, **factory))
        self.beta = nn.Parameter(torch.full((1,), 0.5, **factory))
        with torch.no_grad():
            self.shift.weight.copy_(torch.eye(taps, **factory).unflatten(1, geometry.kernel_size))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention path: three maps (N, C_out, H, W) -> (N, C_out, H', W')."""
        # p_0 adds the same number to every score of a window, which the softmax takes out again.
        key = (key.unflatten(1, (self.heads, -1)) - self.position(_locations(key))).flatten(1, 2)
        head_channels = query.shape[1] // self.heads
        (centre,) = taps_of(query * head_channels**-0.5, _reflecting(self.window.centre(), query))
        border = _reflecting(self.window, query)
        weights = window_scores(centre, taps_of(key, border), self.heads).softmax(2)
        return weighted_sum(weights, taps_of(value, border))

    def convolve(self, projected: Tensor) -> Tensor:
        """The convolution path: q, k and v as (N, 3 C_out, H, W) -> (N, C_out, H', W')."""
        by_channel = projected.flatten(2).unflatten(1, (3 * self.heads, -1)).transpose(1, 2)
        maps = torch.matmul(self.mix.weight, by_channel)
        return self.shift(maps.flatten(1, 2).unflatten(2, projected.shape[2:]))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        projected = self.project(x)
        convolved = self.convolve(projected)
        # Autocast pads by reflection in fp32.
        attended = self.attend(*projected.chunk(3, dim=1)).to(convolved.dtype)
        return self.alpha.to(convolved.dtype) * attended + self.beta.to(convolved.dtype) * convolved

    def extra_repr(self) -> str:
        return f"window={self.window.kernel_size}, heads={self.heads}"


def _locations(x: Tensor) -> Tensor:
    """Column and row of each pixel of (N, C, H, W), from -1 to 1: (1, 2, H, W)."""
    rows, columns = (torch.linspace(-1, 1, size, device=x.device, dtype=x.dtype) for size in x.shape[2:])
    return torch.stack([columns.expand(x.shape[2:]), rows.unsqueeze(1).expand(x.shape[2:])]).unsqueeze(0)


def _reflecting(window: Geometry, x: Tensor) -> Geometry:
    """``window`` with a reflected border, or with a repeated one around a map too small to be reflected."""
    widest = max(0, *(pixels for pair in window.padding for pixels in pair)) + max(window.same_spans or (0,))
    return replace(window, padding_mode="reflect" if min(x.shape[2:]) > widest else "replicate")
