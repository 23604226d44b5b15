"""The closest static convolution of an operator, for deployment without its gate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.attention import AttentionBranch
from xvolution.conversion.modules import call, replace_module
from xvolution.conversion.outputs import tensors_in
from xvolution.convolutions import conv_of
from xvolution.copying import copied, hand_over_hooks
from xvolution.memory_format import with_format_of
from xvolution.numerics import double
from xvolution.operator import XVolution, fold, require_eval

#: Ridge relative to the mean diagonal of the normal equations: keeps flat directions at the convolution branch.
_RIDGE = 1e-8


@dataclass(frozen=True)
class CollapseReport:
    """The error of the static model on the calibration data.

    Attributes:
        layers: by module name, ``||static - operator|| / ||operator||`` (Frobenius) on the operator's inputs.
        output: the same for the model's output; every collapsed layer contributes.
    """

    layers: dict[str, float]
    output: float

    def __str__(self) -> str:
        width = max(len(name) for name in (*self.layers, "model output"))
        lines = [
            f"{name.ljust(width)}  {error:.2e}" for name, error in (*self.layers.items(), ("model output", self.output))
        ]
        return "\n".join(["relative error of the closest static convolutions", *lines])


@torch.inference_mode(False)  # weights made under it could never be trained
def collapse(model: nn.Module, calibration: Iterable[Any]) -> tuple[nn.Module, CollapseReport]:
    """Replace every X-volution by the plain convolution that is closest to it on calibration data.

    Least squares over the input patches of each operator, in closed form (fp64 normal equations)::

        min over W, b of  Σ_patches || W · patch + b - operator(patch) ||²

    Args:
        model: a network in eval mode, or a single ``XVolution2d``.
        calibration: batches: tensors, tuples of positional arguments or mappings of keyword arguments. Read once. They
            should be similar to the data in deployment, and hold more patches than a kernel has weights.

    Returns:
        The static model (a copy), and the report with the errors of this approximation. An operator with a constant gate, as
        after ``train --anneal-to-conv``, is exactly one convolution, with error 0.

    Raises:
        ReparameterizationError: the model is in train mode, or a part of an operator has a hook or a patched forward.
        ValueError: no calibration data, or no X-volution.
    """
    operators = {name: module for name, module in model.named_modules() if isinstance(module, XVolution)}
    if not operators:
        raise ValueError("the model has no X-volution to collapse")
    require_eval(model)
    batches = list(calibration)
    if not batches:
        raise ValueError("calibration is empty; give at least one batch of images like those in deployment")
    fits = {name: _Fit(operator) for name, operator in operators.items()}
    expected = _run(model, batches, fits)
    static = copied(model)
    for name, fit in fits.items():
        static = replace_module(static, name, hand_over_hooks(static.get_submodule(name), fit.solve()))
    actual = _run(static, batches, {})
    error = sum(((a - e).square().sum() for a, e in zip(actual, expected, strict=True)), start=torch.zeros(()))
    norm = sum((e.square().sum() for e in expected), start=torch.zeros(()))
    return static, CollapseReport({name: fit.error for name, fit in fits.items()}, _ratio(error, norm))


def settle(operator: nn.Module) -> None:
    """Make the gates of an operator constant: the form of the weights in layout ``conv``.

    Raises:
        ValueError: no constant gate makes it a convolution.
    """
    branch = getattr(operator, "attention", None)
    if not isinstance(branch, AttentionBranch) or not branch.gates():
        raise ValueError(
            f"{type(operator).__name__} has no layout 'conv', because it does not become a convolution when "
            "its gate is constant"
        )
    branch.settle_({name: torch.zeros(channels) for name, channels in branch.gates().items()})


def _run(model: nn.Module, batches: list[Any], fits: dict[str, _Fit]) -> list[Tensor]:
    handles = [fit.operator.register_forward_hook(fit.observe) for fit in fits.values()]
    try:
        with torch.no_grad():
            return [double(tensor).cpu() for batch in batches for tensor in tensors_in(call(model, batch))]
    finally:
        for handle in handles:
            handle.remove()


def _ratio(error: Tensor, norm: Tensor) -> float:
    return float((error / norm).clamp(min=0).sqrt()) if norm > 0 else 0.0


class _Fit:
    """Normal equations of one layer: the static residual that is closest to ``operator - convolution branch``."""

    def __init__(self, operator: XVolution) -> None:
        self.operator = operator
        operator_folded = fold(operator)
        #: Whether it is one convolution as it is, and nothing is to be fitted.
        static = operator_folded.static()
        self.is_static, folded = static is not None, static or operator_folded.convolution
        self.geometry, self.groups = folded.geometry, folded.groups
        self.weight, self.bias = folded.weight, folded.bias
        size = self.weight[0].numel() + 1
        rows = self.weight.shape[0] // self.groups
        self.gram = self.weight.new_zeros(self.groups, size, size)
        self.moment = self.weight.new_zeros(self.groups, size, rows)
        self.residual_square = self.weight.new_zeros(self.groups)
        self.output_square = self.weight.new_zeros(())
        self.error = 0.0

    def observe(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Accumulate one batch: (N, C_in, H, W) and (N, C_out, H', W')."""
        if self.is_static:
            return
        geometry = self.geometry
        batched = geometry.dims + 2
        x, y = (double(t) if t.dim() == batched else double(t).unsqueeze(0) for t in (args[0], output))
        padded = geometry.pad(x)
        base = geometry.convolve_padded(padded, self.weight, self.bias, self.groups)
        taps = torch.stack(geometry.taps(padded), 2)
        patches = taps.flatten(3).unflatten(1, (self.groups, -1)).permute(1, 0, 4, 2, 3).flatten(3).flatten(1, 2)
        patches = torch.cat([patches, torch.ones_like(patches[..., :1])], 2)
        residual = (y - base).flatten(2).unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
        self.gram += patches.transpose(1, 2) @ patches
        self.moment += patches.transpose(1, 2) @ residual
        self.residual_square += residual.square().sum((1, 2))
        self.output_square += y.square().sum()

    def solve(self) -> nn.Module:
        """The closest convolution; sets ``error``."""
        if self.is_static:
            return self._conv(self.weight, self.bias)
        diagonal = self.gram.diagonal(dim1=1, dim2=2)
        ridge = torch.diag_embed((_RIDGE * diagonal.mean(1, keepdim=True)).clamp(min=1e-30).expand_as(diagonal))
        solution = torch.linalg.solve(self.gram + ridge, self.moment)
        left = self.residual_square - 2 * (solution * self.moment).sum((1, 2))
        left = left + (solution * (self.gram @ solution)).sum((1, 2))
        self.error = _ratio(left.sum(), self.output_square)
        delta = solution[:, :-1].transpose(1, 2).reshape(self.weight.shape)
        return self._conv(self.weight + delta, self.bias + solution[:, -1].flatten())

    def _conv(self, weight: Tensor, bias: Tensor) -> nn.Module:
        like = self.operator.conv.weight
        factory = {"device": like.device, "dtype": like.dtype}
        return with_format_of(like, conv_of(self.geometry, weight, bias, self.groups, factory)).eval()
