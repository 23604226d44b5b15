"""Which of several layouts is fastest here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xvolution.attention.deployed import DeployedOperator
from xvolution.deploy.latency import measure_latency

_ROUNDS = 7


class LayoutTimer:
    """Chooses the fastest layout of operators; one that is like an earlier one, on a like input, is not measured again."""

    def __init__(self) -> None:
        self._chosen: dict[tuple[Any, ...], str] = {}

    def fastest(self, candidates: Sequence[DeployedOperator], x: Tensor) -> DeployedOperator:
        """The candidate that takes the least time on ``x``, as the median over turns that all of them take on its device."""
        layouts = {candidate.layout: candidate for candidate in candidates}
        key = (*map(_structure, candidates), tuple(x.shape), x.dtype, x.stride(), str(x.device))
        if key not in self._chosen:
            with torch.inference_mode():
                measured = measure_latency({layout: partial(layouts[layout], x) for layout in layouts}, _ROUNDS)
            first = next(iter(layouts))
            self._chosen[key] = min(layouts, key=lambda layout: measured.ratio(layout, first))
        return layouts[self._chosen[key]]


def _structure(module: DeployedOperator) -> tuple[Any, ...]:
    """What decides how long an operator takes: its form, its window, and the shapes of its weights."""
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in module.state_dict().items())
    return (type(module), module.geometry, module.groups, shapes)
