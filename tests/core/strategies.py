"""Random operators, in every geometry that ``nn.Conv2d`` knows."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from tests.core.cases import CASES
from tests.core.networks import randomize
from xvolution.operator import OPERATOR_OF_DIMS, XVolution

NORMS: dict[str, Any] = {
    "batch": nn.BatchNorm2d,
    "none": None,
    "group": lambda channels: nn.GroupNorm(2 - channels % 2, channels),
    "instance": lambda channels: nn.GroupNorm(channels, channels),
}


@st.composite
def geometries(draw: st.DrawFn, dims: int) -> dict[str, Any]:
    """The arguments of ``nn.Conv2d`` after its channels, for 8 -> 16 channels in ``dims`` dimensions."""
    sizes = [1, 2, 3, 5] if dims < 3 else [1, 2, 3]

    def each(values: list[int]) -> tuple[int, ...]:
        return tuple(draw(st.sampled_from(values)) for _ in range(dims))

    padding: Any = draw(st.sampled_from([0, 1, 2, "mixed", "same", "valid", "same_upper"]))
    return {
        "kernel_size": each(sizes),
        "stride": 1 if padding == "same" else each([1, 2, 3]),
        "padding": each([1, 2]) if padding == "mixed" else padding,
        "dilation": each([1, 2]),
        "groups": draw(st.sampled_from([1, 1, 2, 4, 8])),
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    }


@st.composite
def operators(
    draw: st.DrawFn,
    branches: tuple[str, ...] = tuple(CASES),
    dims: tuple[int, ...] = (1, 2, 2, 3),
    norms: tuple[str, ...] = ("batch", "batch", "none"),
) -> XVolution:
    """Any legal X-volution on 8 -> 16 channels in fp64, in eval mode with random statistics."""
    kind = OPERATOR_OF_DIMS[draw(st.sampled_from(dims))]
    geometry, norm = draw(geometries(kind.dims)), draw(st.sampled_from(norms))
    branch, seed = draw(st.sampled_from(branches)), draw(st.integers(0, 2**16))
    options: dict[str, Any] = {"attention": draw(CASES[branch].configs), "norm_layer": NORMS[norm], "zero_init": False}
    several = norm in ("batch", "none") and branch != "gated_depthwise"
    options["num_conv_branches"] = draw(st.sampled_from([1, 1, 2, 3])) if several else 1
    options["diverse_branches"] = several and draw(st.booleans())
    torch.manual_seed(seed)
    return randomize(kind(8, 16, **geometry, **options, dtype=torch.float64).eval(), seed)


def inputs_for(operator: XVolution, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A batch of two with as many dimensions as the operator, large enough for every window of ``operators``."""
    sizes = {1: (23,), 2: (11, 13), 3: (9, 9, 10)}[operator.dims]
    return torch.randn(2, 8, *sizes, dtype=dtype)
