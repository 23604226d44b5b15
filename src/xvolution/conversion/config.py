"""The configuration of a conversion: the operator, and its places in the network. Both can be stored in a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from torch import nn

from xvolution.attention import DEFAULT_ATTENTION, AttentionConfig, attention_config
from xvolution.convolutions import conv_over, geometry_of
from xvolution.copying import hand_over_hooks
from xvolution.memory_format import with_format_of
from xvolution.operator import OPERATOR_OF_DIMS


@dataclass(frozen=True)
class Placement:
    """The convolutions of a network to replace; by default all spatial ones after the stem.

    Attributes:
        stages: stages of the network, counted from 1.
        kernel_sizes: side lengths of square kernels; without it, kernels larger than one pixel.
        names: shell patterns of module names, such as layer3.*.conv2.
        at_projections: replace the 1x1 convolution after a depthwise one instead of the depthwise one, unless kernel
            sizes or names are given. There attention mixes channels and takes a fraction of the time.
    """

    stages: tuple[int, ...] | None = None
    kernel_sizes: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None
    at_projections: bool = True

    @classmethod
    def of(
        cls,
        stages: Sequence[int] | None = None,
        kernel_sizes: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        at_projections: bool = True,
    ) -> Placement:
        """The placement from lists, as in files and on the command line.

        Raises:
            ValueError: a criterion that is not a list, such as a single name.
        """
        for name, value in (("stages", stages), ("kernel_sizes", kernel_sizes), ("names", names)):
            if isinstance(value, int | str):
                raise ValueError(f"{name} is {value!r}; give a list or tuple, such as ({value!r},)")
        return cls(
            None if stages is None else tuple(stages),
            None if kernel_sizes is None else tuple(kernel_sizes),
            None if names is None else tuple(names),
            at_projections,
        )


@dataclass(frozen=True, kw_only=True)
class ConversionConfig(ABC):
    """The operator that replaces a convolution.

    Attributes:
        kernel_size: side length of the new kernel in pixels; by default that of the replaced convolution. A kernel of
            another size starts with new weights.
    """

    kernel_size: int | None = None

    #: Whether it may stand at the projection behind a depthwise convolution in the place of that.
    takes_projections: ClassVar[bool] = False

    @property
    def takes_norm(self) -> bool:
        """Whether the norm that follows a convolution moves into its replacement, as ``conv_norm``."""
        return False

    @property
    def keeps_outputs(self) -> bool:
        """Whether the outputs of the converted network stay the same, which is then checked."""
        return False

    @abstractmethod
    def replacement(self, conv: Any, norm: nn.Module | None) -> nn.Module:
        """The replacement of ``conv``; ``norm`` is the norm that follows it, if ``takes_norm``."""

    def narrower(self) -> ConversionConfig | None:
        """A cheaper configuration for a time budget; None if there is none."""
        return None

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON values, with its kind as ``"type"``.

        Raises:
            ValueError: a field holds a function, which has no JSON form.
        """

    def resized(self, conv: Any) -> Any:
        """``conv``, or a new convolution of the same output size whose kernel has the side length ``kernel_size``.

        Raises:
            ValueError: no kernel of that size is centred on the same pixels.
        """
        side = self.kernel_size
        if side is None or set(conv.kernel_size) == {side}:
            return conv
        geometry = geometry_of(conv)
        sides = (side,) * geometry.dims
        larger = geometry.recentred(sides, geometry.dilation)
        grown = [d * (side - k) for k, d in zip(geometry.kernel_size, geometry.dilation, strict=True)]
        off_centre = not isinstance(conv.padding, str) and any(pixels % 2 for pixels in grown)
        if off_centre or min(min(pair) for pair in larger.padding) < 0:
            raise ValueError(
                f"kernel_size={side} cannot replace a kernel of {conv.kernel_size} with padding "
                f"{conv.padding}, because it would not be centred on the same pixels; give another size, or "
                "leave this convolution out"
            )
        options: dict[str, Any] = {"groups": conv.groups, "bias": conv.bias is not None}
        options |= {"device": conv.weight.device, "dtype": conv.weight.dtype}
        resized = with_format_of(conv.weight, conv_over(larger, conv.in_channels, conv.out_channels, **options))
        return hand_over_hooks(conv, resized.train(conv.training))


@dataclass(frozen=True)
class XVolutionConfig(ConversionConfig):
    """X-volution that replaces a convolution and keeps its weights and the norm that follows.

    Attributes:
        attention: the configuration of a branch (``xvolution.attention``), its name, None, or a function that takes the
            ``nn.Conv2d`` to be replaced and returns an attention module of the same input and output shapes.
        num_conv_branches: number of convolutions, each with a norm, that are summed in training and merge into one for
            deployment.
        diverse_branches: also sum a 1x1 convolution, a 1x1 before a convolution, and a 1x1 before average pooling, each
            with a norm. All of them merge into one convolution for deployment.
        norm_layer: norm of the attention branch and of further convolutions: the name of a class in torch.nn, such as
            BatchNorm2d, a function of the number of channels, or None.
        zero_init: start the attention and further convolutions with zero effect, so that the outputs of the converted
            network do not change.
    """

    attention: AttentionConfig | str | Callable[[Any], nn.Module] | None = DEFAULT_ATTENTION
    num_conv_branches: int = 1
    diverse_branches: bool = False
    norm_layer: str | Callable[[int], nn.Module] | None = "BatchNorm2d"
    zero_init: bool = True

    takes_projections = True

    def __post_init__(self) -> None:
        if isinstance(self.attention, str):
            object.__setattr__(self, "attention", attention_config(self.attention))
        if isinstance(self.norm_layer, str) and not hasattr(nn, self.norm_layer):
            raise ValueError(
                f"norm_layer is {self.norm_layer!r}; give the name of a class in torch.nn, such as 'BatchNorm2d'"
            )

    @property
    def takes_norm(self) -> bool:
        return True

    @property
    def keeps_outputs(self) -> bool:
        return self.zero_init and self.kernel_size is None

    def narrower(self) -> XVolutionConfig | None:
        attention = self.attention.narrower() if isinstance(self.attention, AttentionConfig) else None
        return None if attention is None else replace(self, attention=attention)

    def replacement(self, conv: Any, norm: nn.Module | None) -> nn.Module:
        """An X-volution around ``conv`` and its norm, which are kept, not copied."""
        conv = self.resized(conv)
        attention: Any = self.attention
        if callable(attention):
            attention = attention(conv)
        norm_layer = getattr(nn, self.norm_layer) if isinstance(self.norm_layer, str) else self.norm_layer
        return OPERATOR_OF_DIMS[len(conv.kernel_size)].from_conv(
            conv,
            conv_norm=norm,
            attention=attention,
            num_conv_branches=self.num_conv_branches,
            diverse_branches=self.diverse_branches,
            norm_layer=norm_layer,
            zero_init=self.zero_init,
        )

    def to_dict(self) -> dict[str, Any]:
        functions = [name for name in ("attention", "norm_layer") if callable(getattr(self, name))]
        if functions:
            raise ValueError(
                f"{', '.join(functions)} of this configuration is a function, which cannot be stored; give a name"
            )
        attention: Any = self.attention
        return {
            "type": "xvolution",
            "attention": None if attention is None else attention.to_dict(),
            "num_conv_branches": self.num_conv_branches,
            "diverse_branches": self.diverse_branches,
            "norm_layer": self.norm_layer,
            "zero_init": self.zero_init,
            "kernel_size": self.kernel_size,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> XVolutionConfig:
        """The inverse of ``to_dict``.

        Raises:
            ValueError: a field, a branch or an option that this version does not know.
        """
        given = {name: value for name, value in values.items() if name != "type"}
        check_fields(cls, given)
        if isinstance(given.get("attention"), Mapping):
            given["attention"] = attention_config(given["attention"])
        return cls(**given)


@dataclass(frozen=True)
class Conversion:
    """The operator and its places.

    Attributes:
        operator: the operator that replaces each convolution.
        where: the convolutions to replace.
    """

    operator: ConversionConfig
    where: Placement

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        where = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self.where).items()}
        return {"operator": self.operator.to_dict(), "where": where}


def check_fields(cls: type, given: Mapping[str, Any]) -> None:
    """Raise ValueError for a name that is no field of the dataclass ``cls``."""
    unknown = set(given) - {field.name for field in fields(cls)}
    if unknown:
        raise ValueError(
            f"the configuration has unknown fields {', '.join(sorted(unknown))}; it may come from a newer "
            "version of xvolution"
        )
