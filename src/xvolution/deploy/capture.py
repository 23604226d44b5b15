"""Networks captured by ``torch.export``, with dynamic axes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from xvolution.deploy.runtimes.base import one_sentence


def capture(model: nn.Module, inputs: tuple[Tensor, ...], axes: Sequence[int] = ()) -> ExportedProgram:
    """The exported program with these axes of its image batches dynamic; all sizes fixed if there are none.

    Raises:
        ExportError: torch cannot capture the model.
    """
    # torch.export takes an axis of size 1 for a constant, so a single image is captured as two.
    batch = tuple(x.expand(2, *x.shape[1:]).contiguous() if is_batch(x) and x.shape[0] == 1 else x for x in inputs)
    shapes = tuple(dict.fromkeys(axes_of(x, axes), Dim.DYNAMIC) if is_batch(x) else None for x in inputs)
    with (
        one_sentence(f"torch.export cannot capture {type(model).__name__}"),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        return torch.export.export(model, batch if axes else inputs, dynamic_shapes=shapes, strict=False)


def is_batch(x: Tensor) -> bool:
    """Signals (N, C, L), images (N, C, H, W) or videos (N, C, D, H, W)."""
    return x.dim() in (3, 4, 5)


def axes_of(x: Tensor, axes: Sequence[int]) -> tuple[int, ...]:
    """Those of the axes that ``x`` has."""
    return tuple(axis for axis in axes if axis < x.dim())
