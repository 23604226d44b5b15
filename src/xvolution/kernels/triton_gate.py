"""The gate of ``xvolution.kernels.gate`` for images on a GPU, in Triton; channels innermost, sums in fp32.

The window sum is computed where it is used and never stored: for the statistics, for the products, and twice for the
gradient, whose norms need two sums over all pixels before any pixel's gradient is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from xvolution.kernels import triton_kernels as kernels
from xvolution.kernels.gate import Gate, GateGradients

_FUNCTIONS = {"identity": 0, "sigmoid": 1, "tanh": 2}


class _Launch(NamedTuple):
    """Grid, sizes and compile-time constants of the kernels that run over ``pixels`` (N, A, H', W')."""

    grid: tuple[int, int]
    sizes: tuple[int, ...]
    constants: dict[str, int]

    @classmethod
    def over(cls, pixels: Tensor, output: Tensor, key: Tensor, geometry: dict[str, int]) -> _Launch:
        channels = key.shape[1]
        block_channels = min(triton.next_power_of_2(channels), 64)
        block = 2048 // block_channels
        count = pixels.numel() // channels
        grid = (triton.cdiv(count, block), triton.cdiv(channels, block_channels))
        sizes = (count, channels, *output.shape[2:], *key.shape[2:])
        return cls(grid, sizes, {"BLOCK": block, "CHANNELS": block_channels, **geometry})

    def run(self, kernel: Any, *tensors: Tensor, **constants: Any) -> None:
        kernel[self.grid](*tensors, *self.sizes, **constants, **self.constants)


class _Maps(NamedTuple):
    """A gate's tensors as the kernels read them."""

    query: Tensor
    key: Tensor
    window: Tensor
    mean_key: Tensor
    shift: Tensor
    geometry: dict[str, int]

    @classmethod
    def of(cls, gate: Gate) -> _Maps:
        query, key = (x.contiguous(memory_format=torch.channels_last) for x in (gate.query, gate.key))
        mean_key = key.mean((2, 3), dtype=torch.float32)
        shift = torch.zeros_like(mean_key) if gate.mean_weight is None else gate.mean_weight.float() * mean_key
        sizes = (*gate.window.shape[2:], *gate.stride, *gate.padding, *gate.dilation)
        geometry = dict(zip(_POINT, sizes, strict=True))
        return cls(query, key, gate.window.flatten(1).t().float().contiguous(), mean_key, shift, geometry)

    def launch(self) -> _Launch:
        return _Launch.over(self.query, self.query, self.key, self.geometry)


_POINT = {"KH": 1, "KW": 1, "SH": 1, "SW": 1, "PH": 0, "PW": 0, "DH": 1, "DW": 1}


def serves(gate: Gate) -> bool:
    """Whether these kernels compute a gate: images in fp16, bf16 or fp32, with fewer elements than an int32 counts."""
    supported = gate.key.dtype in (torch.float16, torch.bfloat16, torch.float32)
    return gate.key.dim() == 4 and supported and max(gate.key.numel(), gate.query.numel()) < 2**31


def products(gate: Gate) -> tuple[Tensor, Tensor, Tensor]:
    """``gate.products``."""
    maps = _Maps.of(gate)
    ones = maps.window.new_ones(gate.query.shape[1])
    of_query = _moments(
        maps.query, ones, torch.zeros_like(maps.shift), _Launch.over(maps.query, maps.query, maps.query, _POINT)
    )
    of_sum = _moments(maps.key, maps.window, maps.shift, maps.launch())
    product = torch.empty_like(maps.query, dtype=gate.dtype)
    norms = _norms(gate, of_query, of_sum)
    tensors = (maps.query, maps.key, maps.window, maps.shift, norms, product)
    maps.launch().run(kernels.products_kernel, *tensors, FUNCTION=_FUNCTIONS[gate.function])
    return product, of_query, of_sum


def gradients(
    gate: Gate, query_statistics: Tensor, sum_statistics: Tensor, product_gradient: Callable[[Tensor], Tensor]
) -> GateGradients:
    """``gate.gradients``."""
    maps, function = _Maps.of(gate), _FUNCTIONS[gate.function]
    launch, norms = maps.launch(), _norms(gate, query_statistics, sum_statistics)
    product = torch.empty_like(maps.query, dtype=gate.dtype)
    read = (maps.query, maps.key, maps.window, maps.shift, norms)
    launch.run(kernels.products_kernel, *read, product, FUNCTION=function)
    grad = product_gradient(product).contiguous(memory_format=torch.channels_last)
    partial = norms.new_empty(launch.grid[0], 4, norms.shape[1])
    query_grad, sum_grad = torch.empty_like(maps.query), torch.empty_like(maps.query, dtype=torch.float32)
    launch.run(kernels.gradients_kernel, grad, *read, partial, query_grad, sum_grad, WRITE=False, FUNCTION=function)
    totals = partial.sum(0)
    means = totals / launch.sizes[0]
    launch.run(kernels.gradients_kernel, grad, *read, means, query_grad, sum_grad, WRITE=True, FUNCTION=function)
    key_grad, window_grad, mean_grad = _window_sum_gradients(gate, maps, sum_grad)
    # An operator's outputs must not share memory.
    return GateGradients(query_grad, key_grad, window_grad, mean_grad, totals[:2].clone(), totals[2:].clone())


def _window_sum_gradients(gate: Gate, maps: _Maps, sum_grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    by_image = sum_grad.sum((2, 3))
    shares, mean_grad = torch.zeros_like(maps.shift), None
    if gate.mean_weight is not None:
        shares = gate.mean_weight.float() * by_image / maps.key[0, 0].numel()
        mean_grad = (by_image * maps.mean_key).sum(0)
    key_grad = torch.empty_like(maps.key)
    over_key = _Launch.over(maps.key, sum_grad, maps.key, maps.geometry)
    over_key.run(kernels.key_kernel, sum_grad, maps.window, shares, key_grad)
    launch = maps.launch()
    partial = maps.window.new_empty(launch.grid[0], *maps.window.shape)
    launch.run(kernels.window_kernel, sum_grad, maps.key, partial)
    return key_grad, partial.sum(0).t().reshape(gate.window.shape), mean_grad


def _moments(key: Tensor, window: Tensor, shift: Tensor, launch: _Launch) -> Tensor:
    """Mean and biased variance, (2, A), put together from those of the tiles, which loses no digits to large means."""
    means, squares = (window.new_empty(launch.grid[0], key.shape[1]) for _ in range(2))
    launch.run(kernels.moments_kernel, key, window, shift, means, squares)
    pixels, block = launch.sizes[0], launch.constants["BLOCK"]
    counts = torch.full_like(means[:, :1], block)
    counts[-1] = pixels - block * (launch.grid[0] - 1)
    mean = (counts * means).sum(0) / pixels
    return torch.stack([mean, (squares.sum(0) + (counts * (means - mean).square()).sum(0)) / pixels])


def _norms(gate: Gate, query_statistics: Tensor, sum_statistics: Tensor) -> Tensor:
    """(8, A): mean, inverse deviation, scale and shift of the query's norm, then of the window sum's."""
    rows = []
    for (mean, variance), affine, eps in (
        (query_statistics, gate.query_affine, gate.query_eps),
        (sum_statistics, gate.sum_affine, gate.sum_eps),
    ):
        rows += [mean, (variance + eps).rsqrt(), *affine.float()]
    return torch.stack(rows)
