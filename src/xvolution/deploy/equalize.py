"""Scaling channels inside a deployed operator, which changes nothing it computes and helps whoever rounds it to 8 bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.deploy.gated import GatedConv, SingleGatedConv, SplitGatedConv
from xvolution.functional import per_channel, spatial
from xvolution.surgery.modules import call


@torch.no_grad()
def equalize(deployed: nn.Module, calibration: Iterable[Any]) -> nn.Module:
    """Give the parts of every deployed gate ranges that one 8-bit scale can hold.

    In ``y = z_c + W^v ( φ(z_q) ⊙ z_k )`` each channel of ``z_k`` may be multiplied by any s and its column of ``W^v`` by 1/s,
    for every gate; with the identity gate each channel of ``z_q`` as well. In layout ``single`` the three parts come from
    one convolution, whose output a quantizer gives one scale: ``z_k`` is brought to the range of the parts that cannot move.
    In layout ``split`` the channels of ``z_k``, and of the keys before the window, are brought to one range each.

    The factors are powers of two, so the outputs stay the same bit for bit (but for products beyond the range of the dtype).

    Args:
        deployed: a network from ``reparameterize``, in eval mode.
        calibration: batches: tensors, tuples of positional arguments or mappings of keyword arguments.

    Returns:
        A copy. Operators whose window sum has a norm that did not fold are left as they are.

    Raises:
        ValueError: calibration holds no batch.
    """
    equal = deepcopy(deployed)
    operators = {name: module for name, module in equal.named_modules() if isinstance(module, GatedConv)}
    movable = {name: module for name, module in operators.items() if type(module.window_norm) is nn.Identity}
    ranges = {name: _Ranges() for name in movable}
    _observe(equal, movable, ranges, calibration)
    for name, module in movable.items():
        balance = _balance_single if isinstance(module, SingleGatedConv) else _balance_split
        balance(module, ranges[name])
    return equal


class _Ranges:
    """Largest magnitude of each channel of each part of one operator, over all calibration batches: part -> (channels,)."""

    def __init__(self) -> None:
        self.largest: dict[str, Tensor] = {}

    def __getitem__(self, part: str) -> Tensor:
        return self.largest[part]

    def update(self, part: str, maps: Tensor) -> None:
        """``maps`` is (N, C, ...)."""
        magnitude = maps.abs().amax((0, *spatial(maps)))
        self.largest[part] = torch.maximum(self.largest.get(part, magnitude), magnitude)

    def observe(self, module: Any, x: Tensor) -> None:
        y, query, window_sum = module.parts(x)
        self.update("convolution", y)
        for part, maps, shift in zip(("query", "window_sum"), (query, window_sum), module.shifts(x), strict=True):
            self.update(part, maps)
            if shift is not None:
                self.update(part, maps + shift)
        if isinstance(module, SplitGatedConv):
            self.update("key", module.query_and_key(x)[1])


def _observe(
    model: nn.Module, operators: Mapping[str, Any], ranges: Mapping[str, _Ranges], calibration: Iterable[Any]
) -> None:
    def hook(name: str) -> Any:
        def observe(module: Any, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            ranges[name].observe(module, x.unsqueeze(0) if x.dim() < module.conv.weight.dim() else x)

        return observe

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in operators.items()]
    try:
        batches = 0
        for batch in calibration:
            call(model, batch)
            batches += 1
    finally:
        for handle in handles:
            handle.remove()
    if not batches:
        raise ValueError("calibration holds no batch; give at least one batch of images like those the model will see")


def _factors(magnitude: Tensor, target: Tensor) -> Tensor:
    """Powers of two that bring each magnitude close below ``target``; 1 where there is nothing to bring anywhere."""
    factors = torch.exp2(torch.floor(torch.log2(target.double() / magnitude.double())))
    return torch.where(torch.isfinite(factors) & (factors > 0), factors, 1.0).clamp(2.0**-14, 2.0**14).to(magnitude)


def _balance_single(module: Any, ranges: _Ranges) -> None:
    scalable_query = module.gate == "identity" and type(module.query_norm) is nn.Identity
    fixed = [ranges["convolution"]] if scalable_query else [ranges["convolution"], ranges["query"]]
    target = torch.cat(fixed).max()
    by_group = torch.arange(module.conv.out_channels).unflatten(0, (module.groups, -1))
    _, query, window_sum = by_group.split(module.sizes, 1)
    factors = _factors(ranges["window_sum"], target)
    _scale_rows(module.conv, window_sum.flatten(), factors)
    _scale_shift(module, "window_sum", factors)
    _divide_values(module, factors)
    if scalable_query:
        factors = _factors(ranges["query"], target)
        _scale_rows(module.conv, query.flatten(), factors)
        _scale_shift(module, "query", factors)
        _divide_values(module, factors)


def _balance_split(module: Any, ranges: _Ranges) -> None:
    key_factors = _factors(ranges["key"], ranges["query"].max() if module.merged else ranges["key"].max())
    factors = _factors(ranges["window_sum"], ranges["window_sum"].max())
    channels = torch.arange(len(factors))
    if module.merged:
        _scale_rows(module.query_key, channels + len(factors), key_factors)
    else:
        _scale_rows(module.key, channels, key_factors)
    for window in module.windows:
        window.weight.mul_(per_channel((factors / key_factors)[:, None], window.weight))
        if window.bias is not None:
            window.bias.mul_(factors)
    _scale_shift(module, "window_sum", factors)
    _divide_values(module, factors)


def _scale_shift(module: Any, part: str, factors: Tensor) -> None:
    """Multiply what the whole image adds to the query, or to the window sum, where it adds to it."""
    of_query, of_sum = module.shifted
    if not (of_query if part == "query" else of_sum):
        return
    by_group = torch.arange(module.context.out_channels).unflatten(0, (module.groups, -1))
    rows = by_group.chunk(of_query + of_sum, 1)[0 if part == "query" else -1]
    _scale_rows(module.context, rows.flatten(), factors)


def _scale_rows(conv: Any, rows: Tensor, factors: Tensor) -> None:
    """Multiply output channels of a convolution."""
    conv.weight[rows] *= per_channel(factors[:, None], conv.weight)
    if conv.bias is not None:
        conv.bias[rows] *= factors


def _divide_values(module: Any, factors: Tensor) -> None:
    """Divide the input channels of ``W^v``."""
    value = module.value
    by_group = value.weight.unflatten(0, (value.groups, -1))
    by_group /= per_channel(factors.reshape(value.groups, 1, -1), value.weight)
