"""What an operator becomes: modules made of standard convolutions, and the measurement that chooses between them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.deploy.fold import (
    FoldedConvolution,
    FoldedGate,
    FoldedOperator,
    SharedValues,
    embed,
    shifted_keys,
    union_of,
)
from xvolution.deploy.pointwise import project, project_onto
from xvolution.functional import convolution as convolve
from xvolution.functional import per_channel, spatial
from xvolution.nn import ImageAttention, LinearAttention
from xvolution.nn.convolution import is_convolution, is_plain, kernel_of
from xvolution.nn.geometry import Geometry, conv_over
from xvolution.nn.pixel_shift import GATES
from xvolution.nn.precision import add, apply_wide, narrow, widen


def _conv(geometry: Geometry, weight: Tensor, bias: Tensor | None, groups: int, factory: dict[str, Any]) -> Any:
    """A convolution with these fp64 weights, cast to the deployed dtype."""
    conv = conv_over(
        geometry, weight.shape[1] * groups, weight.shape[0], groups=groups, bias=bias is not None, **factory
    )
    conv.weight.copy_(weight)
    if conv.bias is not None and bias is not None:
        conv.bias.copy_(bias)
    return conv


def _pointwise(dims: int, weight: Tensor, bias: Tensor | None, groups: int, factory: dict[str, Any]) -> Any:
    """A 1x1 convolution with the weight (out, in / groups)."""
    return _conv(Geometry.create(1, dims=dims), _kernel(weight, dims), bias, groups, factory)


def _kernel(weight: Tensor, dims: int) -> Tensor:
    """(out, in) -> (out, in, 1, 1)."""
    return weight.reshape(*weight.shape, *(1,) * dims)


class DeployedXVolution(nn.Module):
    """Base of the deployed forms; ``layout`` names which one. Maps (N, C_in, H, W) to (N, C_out, H', W'), in any dimension."""

    layout: str
    conv: Any

    def __init__(self, convolution: FoldedConvolution) -> None:
        super().__init__()
        # Some networks read the geometry of their convolutions, to pad before them for instance.
        geometry, self.groups = convolution.geometry, convolution.groups
        self.out_channels, self.in_channels = convolution.weight.shape[0], convolution.weight.shape[1] * self.groups
        self.kernel_size, self.stride, self.dilation = geometry.kernel_size, geometry.stride, geometry.dilation
        self.padding, self.padding_mode = tuple(before for before, _ in geometry.padding), geometry.padding_mode

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == self.conv.weight.dim() - 1:
            return self.compute(x.unsqueeze(0)).squeeze(0)
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        raise TypeError(f"{type(self).__name__} does not define how it computes")

    def extra_repr(self) -> str:
        return f"layout={self.layout}"


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
        self.value = _pointwise(dims, gate.value_weight, None, convolution.groups, factory)
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
            self.context = _pointwise(dims, _joined(shifts, convolution.groups), None, convolution.groups, factory)

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
            embed(_kernel(gate.query_weight, union.dims), centre, union),
            shifted_keys(gate, union),
        )
        biases = (convolution.bias, gate.query_bias, gate.window_bias)
        self.conv = _conv(union, _joined(kernels, groups), _joined(biases, groups), groups, factory)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, query, window_sum = _parted(self.conv(x), self.sizes, self.groups)
        return y, query, window_sum


class SplitGatedConv(GatedConv):
    """Layout ``split``: W^c as its own convolution, (q, k) by 1x1, the window sum by a depthwise convolution."""

    layout = "split"

    def __init__(self, convolution: FoldedConvolution, gate: FoldedGate, factory: dict[str, Any]) -> None:
        super().__init__(convolution, gate, factory)
        groups, dims = convolution.groups, convolution.geometry.dims
        self.conv = _conv(convolution.geometry, convolution.weight, convolution.bias, groups, factory)
        centre = convolution.geometry.centre()
        # One 1x1 convolution computes both where query and key are read at the same pixels.
        self.merged = groups == 1 and centre == Geometry.create(1, padding_mode=centre.padding_mode, dims=dims)
        if self.merged:
            weight = torch.cat([gate.query_weight, gate.key_weight])
            self.query_key = _pointwise(
                dims, weight, torch.cat([gate.query_bias, torch.zeros_like(gate.query_bias)]), 1, factory
            )
        else:
            self.query = _conv(centre, _kernel(gate.query_weight, dims), gate.query_bias, groups, factory)
            self.key = _pointwise(dims, gate.key_weight, None, groups, factory)
        self.windows = nn.ModuleList(
            _conv(window, weight.unsqueeze(1), None if index else gate.window_bias, gate.channels, factory)
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


class MergedConv(DeployedXVolution):
    """An operator without attention: its convolutions as one."""

    layout = "single"

    def __init__(self, convolution: FoldedConvolution, factory: dict[str, Any]) -> None:
        super().__init__(convolution)
        self.conv = _conv(convolution.geometry, convolution.weight, convolution.bias, convolution.groups, factory)
        self.conv_norm = convolution.norm

    def compute(self, x: Tensor) -> Tensor:
        return self.conv_norm(self.conv(x))


class TwoBranchConv(DeployedXVolution):
    """Layout ``split`` of the branches that do not merge: a folded convolution plus the attention branch."""

    layout = "split"

    def __init__(self, folded: FoldedOperator, attention: nn.Module, factory: dict[str, Any]) -> None:
        super().__init__(folded.convolution)
        convolution = folded.convolution
        self.conv = _conv(convolution.geometry, convolution.weight, convolution.bias, convolution.groups, factory)
        self.conv_norm = convolution.norm
        self.attention = _materialized(deepcopy(attention), factory)
        self.attention_norm = folded.attention_norm
        if folded.value_scale is not None:
            value: Any = self.attention.value
            value.weight.copy_(value.weight.double() * per_channel(folded.value_scale[:, None], value.weight))
            if value.bias is not None:
                value.bias.copy_(value.bias.double() * folded.value_scale)

    def compute(self, x: Tensor) -> Tensor:
        y = self.conv_norm(self.conv(x))
        return add(y, self.attention_norm(self.attention(x)))


class ContentConv(TwoBranchConv):
    """Layout ``single`` of the branches that are one convolution for each image, with a kernel that its content decides."""

    layout = "single"

    def kernels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Kernels (N, C_out, C_in / groups, kh, kw) and biases (N, C_out) of the whole operator, in the dtype of ``x``."""
        raise TypeError(f"{type(self).__name__} does not define its kernels")

    def compute(self, x: Tensor) -> Tensor:
        if not _takes_kernels(x) or type(self.conv_norm) is not nn.Identity:
            return super().compute(x)
        return _convolve_each(Geometry.of(self.conv), x, *self.kernels(x), self.conv.groups)


def _takes_kernels(x: Tensor) -> bool:
    """Whether images can have a kernel each: a graph for any batch size cannot have one group for each image."""
    of_one_size = not torch.compiler.is_compiling() or (torch.compiler.is_exporting() and type(x.shape[0]) is int)
    return of_one_size and x.shape[0] > 0


def _convolve_each(geometry: Geometry, x: Tensor, kernels: Tensor, biases: Tensor, groups: int) -> Tensor:
    """Each image by its own kernel: (N, C_in, H, W), (N, C_out, C_in / groups, kh, kw), (N, C_out) -> (N, C_out, H', W')."""
    images = x.shape[0]
    batch = geometry.pad(x).flatten(0, 1).unsqueeze(0)
    y = convolve(batch, kernels.flatten(0, 1), biases.flatten(), geometry.stride, geometry.dilation, images * groups)
    y = y.reshape(images, -1, *y.shape[2:])
    channels_last = x.dim() == 4 and x.stride(1) == 1 < x.shape[1]
    return y.contiguous(memory_format=torch.channels_last) if channels_last else y


class MixedConv(ContentConv):
    """The linear branch: kernel ``W^c + M(x) W^q`` at the centre."""

    attention: LinearAttention

    def kernels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        conv, attention = self.conv, self.attention
        queries: Any = attention.query
        mixing = attention.mixing_matrix(x)
        heads = mixing.shape[1]
        query_weight = queries.weight.flatten(1).unflatten(0, (heads, -1)).to(mixing.dtype)
        query_bias = queries.bias.unflatten(0, (heads, -1)).unsqueeze(-1).to(mixing.dtype)
        geometry = Geometry.of(conv)
        mixed = narrow((mixing @ query_weight).flatten(1, 2), x.dtype)
        centre = embed(_kernel(mixed, geometry.dims), geometry.centre(), geometry)
        return conv.weight.to(x.dtype) + centre, (conv.bias + (mixing @ query_bias).flatten(1)).to(x.dtype)


class WeightedConv(ContentConv):
    """The image branch: kernel ``W^c + diag(φ(q)) W^v``, or ``W^c + diag(φ(q)) W^v diag(φ(k))``."""

    attention: ImageAttention

    def __init__(self, folded: FoldedOperator, attention: nn.Module, factory: dict[str, Any]) -> None:
        super().__init__(folded, attention, factory)
        window = self.attention.window
        if window is not None:
            weight, groups = self.attention.value_weight, self.conv.groups
            self.attention.value = _conv(kernel_of(window).geometry, weight, None, groups, factory)
            self.attention.window = None

    def kernels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kernels = self.conv.weight.to(x.dtype) + self.attention.kernels(x)
        return kernels, self.conv.bias.to(x.dtype).expand(len(x), -1)


class SharedValueConv(DeployedXVolution):
    """The shared branch, layout ``split``: ``v = conv(x)``, ``y = s ⊙ v + b + φ(q) ⊙ (Σ_δ w_δ ⊙ v_δ + g ⊙ mean(v))``."""

    layout = "split"
    attention: Any
    scale: Tensor
    shift: Tensor

    def __init__(
        self, folded: FoldedOperator, shared: SharedValues, attention: nn.Module, factory: dict[str, Any]
    ) -> None:
        super().__init__(folded.convolution)
        convolution = folded.convolution
        self.attention = _materialized(deepcopy(attention), factory)
        self.conv = _conv(convolution.geometry, shared.weight, shared.bias, convolution.groups, factory)
        for name, vector in (("scale", shared.scale), ("shift", shared.shift)):
            self.register_buffer(name, per_channel(vector, self.conv.weight).to(self.conv.weight))
        self.conv_norm, self.attention_norm = convolution.norm, folded.attention_norm
        if folded.value_scale is not None:
            window, mean_weight = self.attention.window.weight, self.attention.mean_weight
            window.copy_(window.double() * per_channel(folded.value_scale[:, None], window))
            if mean_weight is not None:
                mean_weight.copy_(mean_weight.double() * folded.value_scale)

    def compute(self, x: Tensor) -> Tensor:
        value = self.conv(x)
        y = self.conv_norm(value * self.scale + self.shift)
        return add(y, self.attention_norm(self.attention(x, value)))


class SharedKernelConv(SharedValueConv):
    """The same, layout ``single``: ``v = conv(x)``, then a depthwise convolution by a kernel that the image decides."""

    layout = "single"

    def compute(self, x: Tensor) -> Tensor:
        if not _takes_kernels(x):
            return super().compute(x)
        attention, value = self.attention, self.conv(x)
        geometry, weights = Geometry.of(attention.window), attention.weights(x)
        kernels = weights.unsqueeze(2) * attention.window.weight.to(x.dtype)
        kernels = kernels + embed(self.scale.unsqueeze(1), geometry.centre(), geometry).to(x.dtype)
        biases = self.shift.to(x.dtype).expand_as(weights)
        if attention.mean_weight is not None:
            biases = biases + weights * attention.mean_value(value)
        return _convolve_each(geometry, value, kernels, biases, self.out_channels)


def _materialized(attention: nn.Module, factory: dict[str, Any]) -> nn.Module:
    """The branch with torch's own convolutions, where it had parametrized ones."""
    for name, module in list(attention.named_modules()):
        if is_convolution(module) and not is_plain(module):
            kernel, groups = kernel_of(module), int(getattr(module, "groups", 1))
            attention.set_submodule(name, _conv(kernel.geometry, kernel.weight, kernel.bias, groups, factory))
    return attention


def build(
    folded: FoldedOperator, attention: nn.Module | None, layout: str, factory: dict[str, Any]
) -> DeployedXVolution:
    """The deployed module of a folded operator in one layout (see ``layouts_for``)."""
    with torch.no_grad():
        if folded.gate is not None:
            gated = SingleGatedConv if layout == "single" else SplitGatedConv
            deployed: DeployedXVolution = gated(folded.convolution, folded.gate, factory)
        elif attention is None:
            deployed = MergedConv(folded.convolution, factory)
        elif folded.shared is not None:
            of_shared = SharedKernelConv if layout == "single" else SharedValueConv
            deployed = of_shared(folded, folded.shared, attention, factory)
        elif isinstance(attention, LinearAttention) and layout == "single":
            deployed = MixedConv(folded, attention, factory)
        elif isinstance(attention, ImageAttention) and layout == "single":
            deployed = WeightedConv(folded, attention, factory)
        else:
            deployed = TwoBranchConv(folded, attention, factory)
    return deployed.eval()


def layouts_for(folded: FoldedOperator, attention: nn.Module | None) -> tuple[str, ...]:
    """Layouts in which an operator can be deployed, the one with the fewest multiplications first."""
    if folded.gate is not None:
        pointwise = max(union_of(folded.convolution, folded.gate).kernel_size) == 1
        return ("single", "split") if pointwise else ("split", "single")
    if attention is None:
        return ("single",)
    if isinstance(attention, LinearAttention) and type(folded.attention_norm) is nn.Identity:
        return ("split", "single")
    if isinstance(attention, ImageAttention) and type(folded.attention_norm) is nn.Identity:
        return ("single", "split")
    norms = (folded.convolution.norm, folded.attention_norm)
    if folded.shared is not None and all(type(norm) is nn.Identity for norm in norms):
        return ("single", "split")
    return ("split",)
