"""The operator: a convolution branch and an attention branch, summed.

X-volution: On the Unification of Convolution and Self-attention (Chen, Wang, Ni, arXiv 2106.02253, 2021), section 3.3, figure 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xvolution.attention import DEFAULT_ATTENTION, AttentionConfig, attention_config
from xvolution.attention.base import fold_attention, methods_of, zero_
from xvolution.attention.deployed import DeployedOperator
from xvolution.attention.folded import Folded, FoldedWithoutAttention, LayoutError
from xvolution.capture import SpatialModule
from xvolution.conv_branches import branches_beside
from xvolution.convolutions import CONVOLUTIONS, conv_over, geometry_of
from xvolution.copying import compute_weights, hand_over_hooks, hand_over_notes
from xvolution.exactness import ReparameterizationError, refusal, require_exact, require_finite, require_unaltered
from xvolution.folding import FoldingError, NormLayer, becomes_foldable, build_norm, fold_convolutions
from xvolution.geometry import ConvSite, Geometry
from xvolution.memory_format import with_format_of
from xvolution.numerics import add, on_float64_device
from xvolution.standin import InPlaceOfConvolution


class XVolution(InPlaceOfConvolution, SpatialModule):
    """X-volution as a replacement of a convolution; the subclasses ``XVolution1d``, ``2d`` and ``3d`` set the dimensions::

        y = conv_norm(conv(x)) + attention_norm(attention(x))     (with several branches, a sum of convolutions and norms)

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: those of
            ``nn.Conv2d`` (``nn.Conv1d``, ``nn.Conv3d``), with its meaning and its errors. In addition ``padding="same_upper"``
            pads to ``ceil(n / stride)`` outputs, as TensorFlow does.
        attention: the configuration of a branch (``xvolution.attention``), its name, or a module that maps (N, C_in, H, W) to
            (N, C_out, H', W'). None builds the convolution branch alone, as a control for attention.
        num_conv_branches: number of convolutions in the convolution branch, each with a norm. They are summed in training and
            merge into one convolution for deployment.
        diverse_branches: also sum a 1x1 convolution, a 1x1 before a convolution, and a 1x1 before average pooling, each with
            norms (Ding et al., 2021). They merge into one convolution with the others for deployment. Beside a 1x1 convolution
            all three are the same, so only two 1x1 convolutions in sequence are added.
        norm_layer: normalization of each branch; a batch or instance norm of torch is taken in the operator's dimensions. None
            drops them all.
        zero_init: start the attention and every convolution except the first with zero effect, so that the operator starts as
            its first convolution.
        device, dtype: device and dtype of the parameters.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W'), or without N, as ``nn.Conv2d``; (N, C, L) in one dimension, (N, C, D, H, W) in
        three.

    Raises:
        ValueError: arguments that ``nn.Conv2d`` refuses, an unknown branch, an option that does not fit the convolution, or
            several convolutions with a norm that depends on the whole map, or beside attention that reads one convolution.
    """

    dims: ClassVar[int]

    #: A convolution of torch, of any class that computes one.
    conv: Any
    conv_norm: nn.Module
    parallel: nn.ModuleList
    #: A branch, a module, or None.
    attention: Any
    attention_norm: nn.Module

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
        attention: AttentionConfig | str | nn.Module | None = DEFAULT_ATTENTION,
        num_conv_branches: int = 1,
        diverse_branches: bool = False,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        zero_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        if padding == "same_upper":
            geometry = Geometry.create(kernel_size, stride, padding, dilation, padding_mode, self.dims)
            conv = conv_over(geometry, in_channels, out_channels, groups=groups, bias=bias, **factory)
        else:
            place = (kernel_size, stride, padding, dilation, groups, bias, padding_mode)
            conv = CONVOLUTIONS[self.dims](in_channels, out_channels, *place, **factory)
        branches = (num_conv_branches, diverse_branches)
        self._assemble(conv, None, attention, branches, norm_layer, zero_init, factory)

    @classmethod
    def from_conv(
        cls,
        conv: Any,
        *,
        conv_norm: nn.Module | None = None,
        attention: AttentionConfig | str | nn.Module | None = DEFAULT_ATTENTION,
        num_conv_branches: int = 1,
        diverse_branches: bool = False,
        norm_layer: NormLayer | None = nn.BatchNorm2d,
        zero_init: bool = True,
    ) -> XVolution:
        """An X-volution around an existing convolution and the norm that follows it; both are kept, not copied.

        Args:
            conv: the convolution, in as many dimensions as the operator; its geometry, weights, device, dtype and memory format
                become the operator's. A subclass or a parametrized convolution is kept as it is (see ``xvolution.convolutions``).
            conv_norm: the norm of the convolution branch, or None. It keeps its mode: a frozen norm stays frozen.
            attention, num_conv_branches, diverse_branches, norm_layer, zero_init: those of ``XVolution2d``.

        Raises:
            ValueError: a convolution with another number of dimensions, or a module that does not compute a plain convolution.
        """
        if not isinstance(conv, CONVOLUTIONS[cls.dims]):
            raise ValueError(f"{cls.__name__} replaces an nn.Conv{cls.dims}d, not a {type(conv).__name__}")
        compute_weights(conv)
        operator = cls.__new__(cls)
        nn.Module.__init__(operator)
        factory: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        norm = nn.Identity().train(conv.training) if conv_norm is None else conv_norm
        branches = (num_conv_branches, diverse_branches)
        operator._assemble(conv, norm, attention, branches, norm_layer, zero_init, factory)
        operator.training = conv.training
        for added in (operator.parallel, operator.attention, operator.attention_norm):
            if added is not None:
                with_format_of(conv.weight, added).train(conv.training)
        return hand_over_notes(conv, operator)

    def _assemble(
        self,
        conv: Any,
        conv_norm: nn.Module | None,
        attention: AttentionConfig | str | nn.Module | None,
        branches: tuple[int, bool],
        norm_layer: NormLayer | None,
        zero_init: bool,
        factory: dict[str, Any],
    ) -> None:
        """Build everything around ``conv``; a norm of ``norm_layer`` follows it when ``conv_norm`` is None."""
        num_conv_branches, diverse = branches
        if num_conv_branches < 1:
            raise ValueError(f"num_conv_branches is {num_conv_branches}; it must be at least 1")
        site = ConvSite(conv.in_channels, conv.out_channels, geometry_of(conv), conv.groups, **factory)

        def norm() -> nn.Module:
            return build_norm(norm_layer, conv.out_channels, self.dims, factory)

        self.conv, self.conv_norm = conv, norm() if conv_norm is None else conv_norm
        self.parallel = nn.ModuleList(
            branches_beside(site, num_conv_branches - 1, diverse, conv.bias is not None, norm_layer)
        )
        if attention is None or isinstance(attention, nn.Module):
            self.attention = attention
        else:
            self.attention = attention_config(attention).build(site, norm_layer)
        self.attention_norm = nn.Identity() if attention is None else norm()
        self._check_branches_merge()
        if zero_init:
            self._start_at_the_convolution()

    def _check_branches_merge(self) -> None:
        """Check that several convolutions can merge: each norm must be a scale and a shift after training."""
        if not self.parallel:
            return
        branches: Any = self.parallel
        norms = [self.conv_norm, *(norm for branch in branches for norm in branch.norms)]
        apart = [type(norm).__name__ for norm in norms if not becomes_foldable(norm)]
        if apart:
            raise ValueError(
                f"several convolutions cannot merge with a {apart[0]}, which depends on the whole map; use a "
                "batch norm with running statistics, or num_conv_branches=1 without diverse_branches"
            )
        if getattr(self.attention, "reads_convolution", False):
            raise ValueError(
                f"{type(self.attention).__name__} reads the outputs of one convolution, but there are "
                f"{1 + len(self.parallel)}; use num_conv_branches=1 without diverse_branches"
            )

    def _start_at_the_convolution(self) -> None:
        branch: Any
        for branch in self.parallel:
            branch.zero_init_()
        if not isinstance(self.attention_norm, nn.Identity):
            zero_(self.attention_norm)
        elif self.attention is not None:
            methods_of(self.attention).zero_init_()

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

    def _weight_like(self) -> Tensor:
        return self.conv.weight

    def _bias_like(self) -> Tensor | None:
        return self.conv.bias

    def compute(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        value = self.conv(x)
        y = self._convolve(x, value)
        if self.attention is None:
            return y
        return methods_of(self.attention).add_onto(y, x, value, self.attention_norm)

    def convolved(self, x: Tensor) -> Tensor:
        """The convolution branch: (N, C_in, H, W) -> (N, C_out, H', W')."""
        return self._convolve(x, self.conv(x))

    def attended(self, x: Tensor) -> Tensor:
        """The attention branch behind its norm: (N, C_in, H, W) -> (N, C_out, H', W')."""
        return self.attention_norm(methods_of(self.attention).attend(x, self.conv(x)))

    def _convolve(self, x: Tensor, value: Tensor) -> Tensor:
        y = self.conv_norm(value)
        for branch in self.parallel:
            y = add(y, branch(x))
        return y

    def fuse(self) -> nn.Module:
        """The deployed form with the fewest multiplications, for ``timm.utils.reparameterize_model``.

        Raises:
            ReparameterizationError: the operator is in train mode, or its parts do not compute their original formula.
        """
        require_eval(self)
        return deploy(self, lambda folded: folded.deployed(folded.layouts[0], self.conv.weight))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A plain convolution's, whose weights a parametrization or a hook may compute from others, by new or older names.
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key.removeprefix(prefix)
            if name.split(".")[0] not in self._modules and f"{prefix}conv.{name}" not in state_dict:
                state_dict[f"{prefix}conv.{name}"] = state_dict.pop(key)
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
OPERATOR_OF_DIMS: dict[int, type[XVolution]] = {1: XVolution1d, 2: XVolution2d, 3: XVolution3d}


def fold(operator: XVolution) -> Folded:
    """An operator in eval mode with every norm that folds multiplied in; on the CPU where its device has no fp64.

    Raises:
        ReparameterizationError: a part that is folded has a hook or a patched forward, or weights are infinite or NaN.
    """
    require_unaltered(operator)
    require_finite(operator)
    operator = on_float64_device(compute_weights(operator))
    branches: Any = operator.parallel
    convolution = fold_convolutions(operator.conv, operator.conv_norm, [branch.kernel() for branch in branches])
    if operator.attention is None:
        return FoldedWithoutAttention(convolution)
    return fold_attention(operator.attention, convolution, operator.attention_norm)


@torch.inference_mode(False)  # weights made under it could never be trained
def deploy(operator: XVolution, choose: Callable[[Folded], DeployedOperator]) -> DeployedOperator:
    """The deployed form of an operator in eval mode, with the operator's hooks, after a check that it computes the same.

    Args:
        operator: the operator.
        choose: builds the module in one of the layouts.

    Raises:
        ReparameterizationError: a part has a hook or a patched forward, or was replaced by one with another formula.
        LayoutError: there is no such layout.
    """
    with _refused(operator):
        deployed = choose(fold(operator))
        require_exact(operator, deployed.layout, fold)
    deployed.place, deployed.has_bias = operator.place, operator.bias is not None
    if not any(parameter.requires_grad for parameter in operator.parameters()):
        deployed.requires_grad_(False)
    return hand_over_notes(operator, hand_over_hooks(operator, deployed))


def layouts_for(operator: XVolution) -> tuple[str, ...]:
    """The layouts that an operator in eval mode has, the one with the fewest multiplications first.

    Raises:
        ReparameterizationError: as of ``deploy``.
    """
    with _refused(operator):
        return fold(operator).layouts


@contextmanager
def _refused(operator: XVolution) -> Iterator[None]:
    """Raise every error of deploying an operator as a ReparameterizationError or a LayoutError."""
    try:
        yield
    except (ReparameterizationError, LayoutError):
        raise
    except FoldingError as error:
        raise ReparameterizationError(str(error)) from error
    except Exception as error:  # parts that somebody exchanged do not fit together in any way that could be foreseen
        raise ReparameterizationError(refusal(operator, f"cannot be merged ({error})")) from error


def require_eval(model: nn.Module) -> None:
    """Raise ReparameterizationError if a part of ``model`` is in train mode."""
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ReparameterizationError(
            f"{training[0]} is in train mode, where batch norms use batch statistics and cannot fold; call "
            "model.eval() first"
        )
