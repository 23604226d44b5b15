"""The operator: a convolution and a self-attention branch, summed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xvolution.functional import Similarity
from xvolution.nn import fused
from xvolution.nn.branches import NormLayer, build_attention, hadamard_defaults
from xvolution.nn.convolution import padding_of
from xvolution.nn.geometry import CONVOLUTIONS, Geometry, conv_over
from xvolution.nn.pixel_shift import build_norm
from xvolution.nn.precision import add
from xvolution.nn.shared_attention import SharedValueAttention


class NormalizedConvolution(nn.Module):
    """``norm(conv(x))``: one more convolution of a convolution branch. (N, C_in, H, W) -> (N, C_out, H', W')."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class XVolution(nn.Module):
    """X-volution in the place of a convolution, in the number of dimensions of its subclass: ``XVolution1d``, ``2d`` or ``3d``::

        y = norm_c(conv(x)) + norm_a(attention(x))          (with num_conv_branches, a sum of such convolutions and norms)

    Both branches look through the same window; the ``shared`` one reads ``conv(x)``, through a window of its own. With the
    ``pssa`` branch (Hadamard similarity) the trained operator is exactly one standard convolution and a gate; see
    ``xvolution.reparameterize``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: those of
            ``nn.Conv2d`` (``nn.Conv1d``, ``nn.Conv3d``), with its meaning and its errors. In addition ``padding="same_upper"``
            pads to ``ceil(n / stride)`` outputs, as TensorFlow does.
        num_conv_branches: convolutions of the convolution branch, each with a norm, that are added up in training and are one
            convolution once deployed, at no cost there.
        attention: ``"pssa"``, ``"linear"``, ``"global"``, ``"image"``, ``"shared"``, or a module that maps (N, C_in, H, W) to
            (N, C_out, H', W'). None leaves the convolution branch alone, which tells what attention adds.
        attention_ratio: attention channels as a fraction of the output channels; ``image`` and ``shared`` have one weight for
            each of these.
        similarity: of ``pssa``: ``"hadamard"`` (merges into one convolution) or ``"dot"`` (the paper's equation 9).
        heads: heads in each group, for ``dot``, ``linear`` and ``global``.
        window: of ``pssa`` and of ``shared``; see ``PixelShiftAttention2d`` and ``SharedValueAttention2d``.
        shift_distance: of ``pssa``.
        gate: of ``image``, of ``shared`` and of ``pssa`` with Hadamard similarity; a sigmoid when None. ``"one"``, of ``shared``
            alone, leaves the query out.
        separable: of ``image``: values with one matrix for all shifts; see ``ImageAttention2d``.
        channel_keys: of ``image``: weigh the channels that are read as well as those that are written.
        query_key_norm: of ``global``: cosines of query and key times a learned temperature as logits.
        query_context: of ``pssa`` with Hadamard similarity: let the query see the mean of all pixels; it does when None.
        global_term: of ``shared`` and of ``pssa`` with Hadamard similarity: the term over all pixels; when None, of ``pssa``.
        query_norm, window_norm: of ``pssa`` with Hadamard similarity: put a ``norm_layer`` on q, on the window sum; when
            None both, provided that it is a batch norm, which folds. These five defaults were chosen by measurement
            (``docs/results.md``).
        global_init: of the same: the weights that the term over all pixels starts with.
        norm_layer: normalization of each branch; a batch or instance norm of torch is taken in the operator's dimensions. None
            drops them all.
        zero_init: start the attention, and every convolution but the first, at zero effect, so that the operator starts as its
            first convolution.
        device, dtype: of the parameters.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W'), or without N, as ``nn.Conv2d``; (N, C, L) in one dimension, (N, C, D, H, W) in
        three.

    Raises:
        ValueError: arguments that ``nn.Conv2d`` refuses, an unknown branch, an option that does not belong to it, or several
            convolutions with a norm that depends on the whole map, or beside ``shared`` attention.

    Source: X-volution, section 3.3, figure 2.
    """

    dims: ClassVar[int]

    conv: Any
    conv_norm: nn.Module
    parallel: nn.ModuleList
    #: A module, or None.
    attention: Any
    attention_norm: nn.Module

    #: Set by ``xvolution.deploy``: turns a trained operator into its deployed form.
    deployment: Callable[[XVolution], nn.Module] | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        num_conv_branches: int = 1,
        attention: str | nn.Module | None = "pssa",
        attention_ratio: float = 0.25,
        similarity: Similarity = "hadamard",
        heads: int = 1,
        gate: str | None = None,
        window: int | Sequence[int] | None = None,
        shift_distance: int | Sequence[int] | None = None,
        separable: bool = False,
        channel_keys: bool = False,
        query_key_norm: bool = False,
        query_context: bool | None = None,
        global_term: bool | None = None,
        global_init: float | None = None,
        query_norm: bool | None = None,
        window_norm: bool | None = None,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        zero_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        place: tuple[Any, ...] = (kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        convolution = partial(_build_convolution, self.dims, in_channels, out_channels, place, factory)
        if num_conv_branches < 1:
            raise ValueError(f"num_conv_branches is {num_conv_branches}; it must be at least 1")
        self.conv = convolution()
        self.conv_norm = build_norm(norm_layer, out_channels, self.dims, factory)
        self.parallel = nn.ModuleList(
            NormalizedConvolution(convolution(), build_norm(norm_layer, out_channels, self.dims, factory))
            for _ in range(num_conv_branches - 1)
        )
        self._check_branches_merge()
        gate_options = {
            "gate": gate,
            "query_context": query_context,
            "global_term": global_term,
            "query_norm": query_norm,
            "window_norm": window_norm,
        }
        if attention == "pssa" and similarity == "hadamard":
            defaults = hadamard_defaults(norm_layer)
            gate_options = {name: defaults[name] if value is None else value for name, value in gate_options.items()}
        branch_options: dict[str, Any] = {"similarity": similarity, "window": window, "shift_distance": shift_distance}
        branch_options |= {"global_init": global_init, "separable": separable, "channel_keys": channel_keys}
        branch_options["query_key_norm"] = query_key_norm
        branch_options |= {name: value for name, value in gate_options.items() if value is not None}
        for name in ("query_norm", "window_norm"):
            branch_options[name] = norm_layer if gate_options[name] else None
        common = {"attention_ratio": attention_ratio, "heads": heads, **factory}
        self.attention = build_attention(attention, self.dims, self.conv, padding, common, branch_options)
        if isinstance(self.attention, SharedValueAttention) and num_conv_branches > 1:
            raise ValueError(
                f"attention='shared' reads the outputs of one convolution, and num_conv_branches is {num_conv_branches}; use 1"
            )
        norm_of_attention = None if attention is None else norm_layer
        self.attention_norm = build_norm(norm_of_attention, out_channels, self.dims, factory)
        if zero_init:
            self._start_at_the_convolution()

    @classmethod
    def from_conv(cls, conv: Any, *, conv_norm: nn.Module | None = None, **options: Any) -> XVolution:
        """An X-volution around an existing convolution and the norm that follows it; both are kept, not copied.

        Args:
            conv: the convolution, in as many dimensions as the operator; its geometry, weights, device and dtype become the
                operator's. A subclass or a parametrized convolution is kept as it is (see ``xvolution.nn.convolution``).
            conv_norm: the norm of the convolution branch; none when None.
            options: keyword options of ``XVolution2d``.

        Raises:
            ValueError: a convolution of another number of dimensions, or one that computes no plain convolution.
        """
        if not isinstance(conv, CONVOLUTIONS[cls.dims]):
            raise ValueError(f"{cls.__name__} goes in the place of an nn.Conv{cls.dims}d, not of {type(conv).__name__}")
        operator = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            padding_of(conv),
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
            **options,
        )
        operator.conv = conv
        operator.conv_norm = nn.Identity() if conv_norm is None else conv_norm
        operator._check_branches_merge()
        return operator.train(conv.training)

    def _check_branches_merge(self) -> None:
        """Several convolutions become one where each norm is a scale and a shift once it is trained."""
        branches: Any = self.parallel
        norms = [self.conv_norm, *(branch.norm for branch in branches)]
        apart = [type(norm).__name__ for norm in norms if not _becomes_affine(norm)]
        if self.parallel and apart:
            raise ValueError(
                f"several convolutions cannot become one with a {apart[0]} that depends on the whole map; use a batch norm with "
                "running statistics, or num_conv_branches=1"
            )

    def _start_at_the_convolution(self) -> None:
        branch: Any
        for branch in self.parallel:
            _start_at_zero(branch.conv if isinstance(branch.norm, nn.Identity) else branch.norm)
        if self.attention is None:
            return
        last = self.attention_norm
        if not isinstance(last, nn.Identity):
            _start_at_zero(last)
        elif isinstance(self.attention, SharedValueAttention):
            self.attention.start_at_zero()
        else:
            _start_at_zero(getattr(self.attention, "value", last))

    @property
    def in_channels(self) -> int:
        return self.conv.in_channels

    @property
    def out_channels(self) -> int:
        return self.conv.out_channels

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return self.conv.kernel_size

    @property
    def stride(self) -> tuple[int, ...]:
        return self.conv.stride

    @property
    def padding(self) -> tuple[int, ...] | str:
        return self.conv.padding

    @property
    def dilation(self) -> tuple[int, ...]:
        return self.conv.dilation

    @property
    def groups(self) -> int:
        return self.conv.groups

    @property
    def padding_mode(self) -> str:
        return self.conv.padding_mode

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W'); (C_in, H, W) -> (C_out, H', W')."""
        if x.dim() == self.dims + 1:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        value = self.conv(x)
        y = self._convolve(x, value)
        if self.attention is None:
            return y
        if fused.serves(self.attention, self.attention_norm, y):
            return fused.add_branch(y, x, self.attention, self.attention_norm)
        attended = self.attention_norm(self._attend(x, value))
        if attended.shape != y.shape:
            raise ValueError(
                f"the attention branch returned {tuple(attended.shape)}, the convolution {tuple(y.shape)}; "
                "an attention module must map (N, C_in, H, W) to the convolution's output shape"
            )
        return add(y, attended)

    def convolved(self, x: Tensor) -> Tensor:
        """The convolution branch: (N, C_in, H, W) -> (N, C_out, H', W')."""
        return self._convolve(x, self.conv(x))

    def attended(self, x: Tensor) -> Tensor:
        """The attention branch: (N, C_in, H, W) -> (N, C_out, H', W')."""
        return self.attention_norm(self._attend(x, self.conv(x)))

    def _convolve(self, x: Tensor, value: Tensor) -> Tensor:
        y = self.conv_norm(value)
        for branch in self.parallel:
            y = add(y, branch(x))
        return y

    def _attend(self, x: Tensor, value: Tensor) -> Tensor:
        shared = isinstance(self.attention, SharedValueAttention)
        return self.attention(x, value) if shared else self.attention(x)

    def fuse(self) -> nn.Module:
        """The deployed form, as ``timm.utils.reparameterize_model`` asks for it.

        Raises:
            ReparameterizationError: the operator is in train mode.
        """
        if XVolution.deployment is None:
            raise RuntimeError("xvolution.deploy is not loaded; import xvolution before re-parameterizing")
        return XVolution.deployment(self)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("weight", "bias"):
            if prefix + name in state_dict and f"{prefix}conv.{name}" not in state_dict:
                state_dict[f"{prefix}conv.{name}"] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return self.conv.extra_repr()


class XVolution1d(XVolution):
    """``XVolution`` in the place of ``nn.Conv1d``: (N, C_in, L) -> (N, C_out, L')."""

    dims = 1


class XVolution2d(XVolution):
    """``XVolution`` in the place of ``nn.Conv2d``: (N, C_in, H, W) -> (N, C_out, H', W')."""

    dims = 2


class XVolution3d(XVolution):
    """``XVolution`` in the place of ``nn.Conv3d``: (N, C_in, D, H, W) -> (N, C_out, D', H', W')."""

    dims = 3


#: The operator for each number of dimensions.
XVOLUTIONS: dict[int, type[XVolution]] = {1: XVolution1d, 2: XVolution2d, 3: XVolution3d}


def _build_convolution(
    dims: int, in_channels: int, out_channels: int, place: tuple[Any, ...], factory: dict[str, Any]
) -> Any:
    """``nn.Conv2d(in_channels, out_channels, *place)`` in ``dims`` dimensions, with ``same_upper`` as one more padding."""
    kernel_size, stride, padding, dilation, groups, bias, padding_mode = place
    if padding == "same_upper":
        geometry = Geometry.create(kernel_size, stride, padding, dilation, padding_mode, dims)
        return conv_over(geometry, in_channels, out_channels, groups=groups, bias=bias, **factory)
    return CONVOLUTIONS[dims](in_channels, out_channels, *place, **factory)


def _becomes_affine(norm: nn.Module) -> bool:
    """Whether a norm is a scale and a shift of each channel once it is trained."""
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return norm.track_running_stats
    return type(norm) is nn.Identity or type(norm).__name__ == "FrozenBatchNorm2d"


def _start_at_zero(last: nn.Module) -> None:
    if getattr(last, "weight", None) is None:
        raise ValueError(
            "zero_init needs a last layer with a weight: the branch has none; pass zero_init=False, or a norm_layer with "
            "affine parameters"
        )
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
