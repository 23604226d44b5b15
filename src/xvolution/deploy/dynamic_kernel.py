"""The operator as a dynamic convolution: its kernel at one pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from xvolution.numerics import double
from xvolution.operator import XVolution, fold


@overload
def dynamic_kernel(
    module: XVolution, x: Tensor, position: Sequence[int], return_bias: Literal[False] = False
) -> Tensor: ...


@overload
def dynamic_kernel(
    module: XVolution, x: Tensor, position: Sequence[int], return_bias: Literal[True]
) -> tuple[Tensor, Tensor]: ...


@torch.no_grad()
def dynamic_kernel(
    module: XVolution, x: Tensor, position: Sequence[int], return_bias: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The kernel that the operator applies at one output pixel, which depends on the image.

    At that pixel ``output = Σ kernel * patch + bias``, with ``patch`` the padded input under the window. For each
    branch that is such a convolution, ``kernel_at`` of its folded form (``xvolution.attention``) has the formula.

    Args:
        module: an ``XVolution`` in eval mode.
        x: (N, C_in, H, W), or with the dimensions of the operator.
        position: (row, column) of the output pixel, one number for each dimension.
        return_bias: also return the bias at that pixel, which holds everything that does not multiply the patch: folded batch
            norms, the terms over all pixels, the bias of the query.

    Returns:
        The kernel (N, C_out, C_in / groups, kh, kw), in the dtype of ``x``; with ``return_bias`` also the bias (N, C_out). The
        window is the convolution's, or the smallest regular window that also contains all shifts; for ``GatedDepthwise`` that of
        the convolution and the window over its outputs together.

    Raises:
        ValueError: train mode, a position outside of the output, a branch that is no dynamic convolution over a window
            (``Global`` or a module), or a norm that does not fold.
        ReparameterizationError: a part has a hook or a patched forward.
    """
    if not isinstance(module, XVolution):
        raise ValueError(f"dynamic_kernel takes an XVolution, got {type(module).__name__}")
    if module.training:
        raise ValueError("the operator is in train mode, where batch norms depend on the batch; call eval() first")
    if x.dim() != module.dims + 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; it must be (N, C_in, ...) with {module.dims} dimensions after them"
        )
    kernel, bias = (part.to(x.device, x.dtype) for part in fold(module).kernel_at(double(x), position))
    return (kernel, bias) if return_bias else kernel
