"""Scaling channels inside a deployed operator, which keeps its outputs and reduces the error of 8-bit quantization."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.attention.deployed import DeployedOperator
from xvolution.conversion.modules import call
from xvolution.copying import copied
from xvolution.geometry import spatial


@torch.no_grad()
def equalize(deployed: nn.Module, calibration: Iterable[Any]) -> nn.Module:
    """Rescale the parts of every deployed operator so that one 8-bit scale covers their ranges, if its branch supports that.

    ``PixelShift`` does. In ``y = z_c + W^v ( φ(z_q) ⊙ z_k )`` each channel of ``z_k`` may be multiplied by any s and its column
    of ``W^v`` by 1/s, for every gate; with the identity gate each channel of ``z_q`` as well. In layout ``single`` the three
    parts come from one convolution, whose output a quantizer gives one scale: ``z_k`` is brought to the range of the parts that
    cannot move. In layout ``split`` the channels of ``z_k``, and of the keys before the window, are brought to one range each.

    The factors are powers of two, so the outputs stay the same bit for bit (but for products beyond the range of the dtype).

    Args:
        deployed: a network from ``reparameterize``, in eval mode.
        calibration: batches: tensors, tuples of positional arguments or mappings of keyword arguments.

    Returns:
        A copy. Operators of other branches, and those whose window sum has a norm that did not fold, are left as they are.

    Raises:
        ValueError: calibration holds no batch.
    """
    equal = copied(deployed)
    operators = {name: module for name, module in equal.named_modules() if isinstance(module, DeployedOperator)}
    ranges = {name: _Ranges() for name in operators}
    _observe(equal, operators, ranges, calibration)
    for name, module in operators.items():
        if ranges[name].largest:
            module.equalize_(ranges[name].largest)
    return equal


class _Ranges:
    """Largest magnitude of each channel of each part of one operator, over all calibration batches: part -> (channels,)."""

    def __init__(self) -> None:
        self.largest: dict[str, Tensor] = {}

    def observe(self, module: DeployedOperator, x: Tensor) -> None:
        for part, maps in module.parts_to_equalize(x).items():
            magnitude = maps.abs().amax((0, *spatial(maps)))
            self.largest[part] = torch.maximum(self.largest.get(part, magnitude), magnitude)


def _observe(
    model: nn.Module,
    operators: Mapping[str, DeployedOperator],
    ranges: Mapping[str, _Ranges],
    calibration: Iterable[Any],
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
        raise ValueError("calibration is empty; give at least one batch of images like those in deployment")
