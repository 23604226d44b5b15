"""Attention whose values are what the convolution beside it computed: a window over its outputs, weighted by the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xvolution.functional import as_tuple, per_channel
from xvolution.nn.geometry import Geometry, conv_over, image_mean, pointwise
from xvolution.nn.pixel_shift import GATES, build_mean_weight, convolve_window

#: Those of a query, and φ = 1, without one: the same window for all images, the control for what attention adds to it.
SHARED_GATES = (*GATES, "one")


class SharedValueAttention(nn.Module):
    """Maps the input (N, C_in, H, W) and the convolution's output (N, C_out, H', W') to (N, C_out, H', W')::

        a_0 = φ(q) ⊙ (Σ_δ w_δ ⊙ v_δ + g ⊙ mean(v)),      q = W^q mean(x) + b^q,      v = conv(x)

    The values are shared with the convolution: attention reads its outputs, before their norm, through a window of one weight for
    each channel and shift, and one query of the whole image weighs the channels. So the branch needs no values of its own, and
    reaches further than the convolution. With the convolution beside it, it is that convolution followed by a depthwise one,
    whose kernel each image decides: ``s + φ(q) ⊙ w_δ``, with ``s``, the convolution's norm, at the centre. The mean over all
    pixels adds one vector for each image.

    Args:
        in_channels, out_channels, groups: of the convolution beside it.
        window: size of the window over the convolution's outputs, around which are zeros.
        gate: φ, ``"identity"``, ``"sigmoid"`` or ``"tanh"``; ``"one"`` is φ = 1, a window that no query weighs: the control.
        global_term: add the term over all pixels, one weight for each channel.
        global_init: what these weights start with; ``GLOBAL_INIT`` when None.
        device, dtype: of the parameters.

    Raises:
        ValueError: an unknown gate, an empty window, or ``global_init`` without the term over all pixels.

    Source: the Hadamard branch of ``PixelShiftAttention`` with the image's query in the place of the pixel's, and with the
    convolution's outputs in the place of the keys.
    """

    dims: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int = 1,
        *,
        window: int | Sequence[int] = 5,
        gate: str = "sigmoid",
        global_term: bool = False,
        global_init: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if gate not in SHARED_GATES:
            raise ValueError(f"gate is {gate!r}; allowed are {', '.join(map(repr, SHARED_GATES))}")
        sizes = as_tuple(window, self.dims)
        if min(sizes) < 1:
            raise ValueError(f"window is {window}; it must be a positive integer, or one for each dimension")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        geometry = Geometry.create(sizes, padding="same", dims=self.dims)
        self.gate = gate
        self.query = (
            None if gate == "one" else pointwise(self.dims, in_channels, out_channels, groups=groups, **factory)
        )
        self.window = conv_over(geometry, out_channels, out_channels, groups=out_channels, bias=False, **factory)
        self.mean_weight = build_mean_weight(out_channels, global_term, global_init, factory)

    def weights(self, x: Tensor) -> Tensor:
        """φ(q): (N, C_in, H, W) -> (N, C_out, 1, 1)."""
        if self.query is None:
            return x.new_ones(len(x), self.window.out_channels, *(1,) * self.dims)
        return GATES[self.gate](self.query(image_mean(x)))

    def forward(self, x: Tensor, value: Tensor) -> Tensor:
        """(N, C_in, H, W) and ``conv(x)``, (N, C_out, H', W') -> (N, C_out, H', W')."""
        attended = convolve_window(self.window, value)
        if self.mean_weight is not None:
            attended = attended + self.mean_value(value)
        return self.weights(x) * attended

    def mean_value(self, value: Tensor) -> Tensor:
        """``g ⊙ mean(v)``: (N, C_out, H', W') -> (N, C_out, 1, 1)."""
        assert self.mean_weight is not None
        return per_channel(self.mean_weight.to(value.dtype), value) * image_mean(value)

    def start_at_zero(self) -> None:
        """Begin training without effect, where no norm follows that could."""
        for weight in (self.window.weight, self.mean_weight):
            if weight is not None:
                nn.init.zeros_(weight)

    def extra_repr(self) -> str:
        return f"gate={self.gate}, global_term={self.mean_weight is not None}"


class SharedValueAttention1d(SharedValueAttention):
    """``SharedValueAttention`` of signals: (N, C_in, L) and (N, C_out, L') -> (N, C_out, L')."""

    dims = 1


class SharedValueAttention2d(SharedValueAttention):
    """``SharedValueAttention`` of images: (N, C_in, H, W) and (N, C_out, H', W') -> (N, C_out, H', W')."""

    dims = 2


class SharedValueAttention3d(SharedValueAttention):
    """``SharedValueAttention`` of videos and volumes: (N, C_in, D, H, W) and (N, C_out, D', H', W') -> (N, C_out, D', H', W')."""

    dims = 3
