"""The strength and the kernel of an X-volution's attention branch at each pixel."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xvolution import XVolution2d, dynamic_kernel
from xvolution.analysis.branch_statistics import attending_operator


@dataclass(frozen=True)
class BranchMaps:
    """The strength of each branch's output at each pixel, for one operator.

    Attributes:
        operand: (N, C_in, H, W), the operator's input.
        convolution: (N, H', W'), length of the convolution branch's output vector at each pixel.
        attention: (N, H', W'), the same of the attention branch.
    """

    operand: Tensor
    convolution: Tensor
    attention: Tensor

    @property
    def share(self) -> Tensor:
        """(N, H', W'): attention / (attention + convolution), from 0 (convolution alone) to 1; 0 where both outputs are 0."""
        total = self.attention + self.convolution
        return torch.where(total > 0, self.attention / total, torch.zeros_like(total))

    def strongest(self) -> list[tuple[int, int]]:
        """For each image, the (row, column) at which the attention branch's output is strongest."""
        width = self.attention.shape[2]
        return [divmod(int(pixel), width) for pixel in self.attention.flatten(1).argmax(1)]


@torch.no_grad()
def branch_maps(model: nn.Module, images: Tensor, name: str) -> BranchMaps:
    """Run ``model`` and compare the two branches of one of its operators.

    Args:
        model: in evaluation mode and training form (not re-parameterized).
        images: (N, C, H, W), what the model takes.
        name: path of an ``XVolution2d`` in ``model.named_modules()``.

    Returns:
        The strength of both branches after their normalization, as they enter the sum.

    Raises:
        ValueError: the model has no operator of that name, or is in training mode.
    """
    operator = attending_operator(model, name)
    if operator.training:
        raise ValueError(
            f"{name!r} is in training mode, and running it would change its statistics; call model.eval() first"
        )
    operands: list[Tensor] = []
    hook = operator.register_forward_pre_hook(lambda _, inputs: operands.append(inputs[0].detach()))
    try:
        model(images)
    finally:
        hook.remove()
    x = operands[0]
    convolution = operator.convolved(x)
    return BranchMaps(x, convolution.norm(dim=1), operator.attended(x).norm(dim=1))


@torch.no_grad()
def attention_kernel(operator: XVolution2d, x: Tensor, position: tuple[int, int]) -> Tensor:
    """The size of the attention branch's kernel at one pixel, for each neighbour.

    At one pixel the operator is a convolution whose kernel has a static part (the convolution branch) and a dynamic part
    (attention). This is the magnitude of the dynamic part, tap by tap.

    Args:
        operator: in evaluation mode.
        x: (N, C_in, H, W), the operator's input.
        position: (row, column) in the output.

    Returns:
        (N, kh, kw): Frobenius norm over output and input channels.
    """
    attention_alone = copy.deepcopy(operator)
    attention_alone.conv_norm = _silence(operator)
    for branch in attention_alone.parallel:
        branch.norm = _silence(operator)
    return dynamic_kernel(attention_alone, x, position).norm(dim=(1, 2))


def _silence(operator: XVolution2d) -> nn.Module:
    """A norm that sets the convolution branch to zero; attention may still read the convolution's output before it."""
    norm = nn.BatchNorm2d(operator.out_channels).to(operator.conv.weight).eval()
    nn.init.zeros_(norm.weight)
    return norm
