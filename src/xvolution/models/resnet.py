"""`xvolution_resnet18/34/50/101`: timm's ResNets with X-volution in the third stage, by timm's registry.

There are no published weights of these networks, so ``timm.list_models("xvolution*", pretrained=True)`` lists none of them.
``pretrained=True`` loads the plain network's weights, and attention starts with zero effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import resnet18, resnet34, resnet50, resnet101
from torch import nn

from xvolution.conversion.config import ConversionConfig
from xvolution.conversion.convert import convert

_PLAIN = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "resnet101": resnet101}

default_cfgs = generate_default_cfgs(
    {
        f"xvolution_{name}": config.to_dict(remove_source=True)  # a name with a source is listed as pretrained
        for name in _PLAIN
        if (config := timm.get_pretrained_cfg(name)) is not None
    }
)


def _xvolution_resnet(
    name: str,
    pretrained: bool = False,
    stages: Sequence[int] | None = (3,),
    xvolution: ConversionConfig | str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build timm's `name` with the plain network's weights, then convert it; the outputs stay the same."""
    for argument in ("pretrained_cfg", "pretrained_cfg_overlay"):
        kwargs.pop(argument, None)
    return convert(_PLAIN[name](pretrained=pretrained, **kwargs), xvolution, stages=stages, inplace=True)


@register_model
def xvolution_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with X-volution in `stages` (from 1, default `(3,)`); `xvolution` is an XVolutionConfig.

    With `pretrained` the weights are those of timm's plain ResNet-18: there are none of this network.
    """
    return _xvolution_resnet("resnet18", pretrained, **kwargs)


@register_model
def xvolution_resnet34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34 with X-volution; the arguments are those of `xvolution_resnet18`."""
    return _xvolution_resnet("resnet34", pretrained, **kwargs)


@register_model
def xvolution_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 with X-volution; the arguments are those of `xvolution_resnet18`."""
    return _xvolution_resnet("resnet50", pretrained, **kwargs)


@register_model
def xvolution_resnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-101 with X-volution; the arguments are those of `xvolution_resnet18`."""
    return _xvolution_resnet("resnet101", pretrained, **kwargs)
