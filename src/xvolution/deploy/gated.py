"""The deployed forms of the Hadamard branch: standard convolutions, then the gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.deploy.deployed import DeployedXVolution, conv_of, kernel_of_matrix, pointwise_of
from xvolution.deploy.fold import FoldedConvolution, FoldedGate, embed, shifted_keys, union_of
from xvolution.deploy.pointwise import project, project_onto
from xvolution.functional import spatial
from xvolution.nn.geometry import Geometry
from xvolution.nn.pixel_shift import GATES
from xvolution.nn.precision import add, apply_wide, widen


def _joined(parts: Sequence[Tensor], groups: int) -> Tensor:
    """(C, ...) each -> (sum of C, ...), with the channels of a group side by side."""
    return torch.cat([part.unflatten(0, (groups, -1)) for part in parts], 1).flatten(0, 1)


def _parted(maps: Tensor, sizes: Sequence[int], groups: int) -> Sequence[Tensor]:
    """The parts of (N, C, H, W) that ``_joined`` joined, from their sizes in each group."""
    if groups == 1:
        return maps.split(sizes, 1)
    return [part.flatten(1, 2) for part in maps.unflatten(1, (groups, -1)).split(sizes, 2)]


class GatedConv(DeployedXVolution):
    """The Hadamard operator: ``y = z_c + W^v ( φ(z_q + s_q) ⊙ (z_k + s_k) )``.

    The subclasses compute (z_c, z_q, z_k) in their own way; the shifts (s_q, s_k) are the whole image's.
    """

    def __init__(self, convolution: FoldedConvolution, gate: FoldedGate, factory: dict[str, Any]) -> None:
        super().__init__(convolution)
        self.gate, dims = gate.gate, convolution.geometry.dims
        self.value = pointwise_of(dims, gate.value_weight, None, convolution.groups, factory)
        # Norms that could not fold; identities otherwise.
        self.conv_norm, self.attention_norm = convolution.norm, gate.norm
        self.query_norm, self.window_norm = gate.query_norm, gate.window_norm
        of_query, of_sum = gate.context_weight, None
        if gate.mean_weight is not None:
            of_sum = gate.mean_weight.unsqueeze(1) * gate.key_weight
        shifts = [weight for weight in (of_query, of_sum) if weight is not None]
        self.shifted = (of_query is not None, of_sum is not None)
        self.context = None
        if shifts:
            self.context = pointwise_of(dims, _joined(shifts, convolution.groups), None, convolution.groups, factory)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(z_c, z_q, z_k): (N, C_out, H', W') and twice (N, A, H', W')."""
        raise TypeError(f"{type(self).__name__} does not define its parts")

    def shifts(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(s_q, s_k): (N, A, 1, 1) each, or None where there is none."""
        if self.context is None:
            return None, None
        sizes = [self.value.in_channels // self.groups] * sum(self.shifted)
        found = iter(_parted(self.context(x.mean(spatial(x), keepdim=True)), sizes, self.groups))
        of_query, of_sum = (next(found) if there else None for there in self.shifted)
        return of_query, of_sum

    def compute(self, x: Tensor) -> Tensor:
        y, query, window_sum = self.parts(x)
        of_query, of_sum = self.shifts(x)
        query = query if of_query is None else query + of_query
        window_sum = window_sum if of_sum is None else window_sum + of_sum
        source = query.dtype
        query, window_sum = widen(self.query_norm(query), self.window_norm(window_sum))
        product = GATES[self.gate](query) * window_sum
        y = self.conv_norm(y)
        if type(self.attention_norm) is nn.Identity and product.dtype == source:
            return project_onto(y, self.value, product)
        return add(y, self.attention_norm(apply_wide(self.value, product, source)))


class SingleGatedConv(GatedConv):
    """Layout ``single``: one standard convolution with C_out + 2 A output channels, then the gate."""

    layout = "single"

    def __init__(self, convolution: FoldedConvolution, gate: FoldedGate, factory: dict[str, Any]) -> None:
        super().__init__(convolution, gate, factory)
        groups = convolution.groups
        self.sizes = [channels // groups for channels in (convolution.weight.shape[0], gate.channels, gate.channels)]
        union = union_of(convolution, gate)
        centre = convolution.geometry.centre()
        kernels = (
            embed(convolution.weight, convolution.geometry, union),
            embed(kernel_of_matrix(gate.query_weight, union.dims), centre, union),
            shifted_keys(gate, union),
        )
        biases = (convolution.bias, gate.query_bias, gate.window_bias)
        self.conv = conv_of(union, _joined(kernels, groups), _joined(biases, groups), groups, factory)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, query, window_sum = _parted(self.conv(x), self.sizes, self.groups)
        return y, query, window_sum


class SplitGatedConv(GatedConv):
    """Layout ``split``: W^c as its own convolution, (q, k) by 1x1, the window sum by a depthwise convolution."""

    layout = "split"

    def __init__(self, convolution: FoldedConvolution, gate: FoldedGate, factory: dict[str, Any]) -> None:
        super().__init__(convolution, gate, factory)
        groups, dims = convolution.groups, convolution.geometry.dims
        self.conv = conv_of(convolution.geometry, convolution.weight, convolution.bias, groups, factory)
        centre = convolution.geometry.centre()
        # One 1x1 convolution computes both where query and key are read at the same pixels.
        self.merged = groups == 1 and centre == Geometry.create(1, padding_mode=centre.padding_mode, dims=dims)
        if self.merged:
            weight = torch.cat([gate.query_weight, gate.key_weight])
            self.query_key = pointwise_of(
                dims, weight, torch.cat([gate.query_bias, torch.zeros_like(gate.query_bias)]), 1, factory
            )
        else:
            self.query = conv_of(centre, kernel_of_matrix(gate.query_weight, dims), gate.query_bias, groups, factory)
            self.key = pointwise_of(dims, gate.key_weight, None, groups, factory)
        self.windows = nn.ModuleList(
            conv_of(window, weight.unsqueeze(1), None if index else gate.window_bias, gate.channels, factory)
            for index, (window, weight) in enumerate(gate.windows)
        )

    def query_and_key(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(q, k): (N, A, H', W') at the centres of the windows and (N, A, H, W) everywhere."""
        if self.merged:
            query, key = project(self.query_key, x, parts=2)
            return query, key
        return self.query(x), self.key(x)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key = self.query_and_key(x)
        window_sum = self.windows[0](key)
        for window in self.windows[1:]:
            window_sum = window_sum + window(key)
        return self.conv(x), query, window_sum
