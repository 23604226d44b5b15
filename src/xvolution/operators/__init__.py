"""The neighbours of X-volution: operators that take the place of a convolution, one file each, by name."""

from xvolution.operators.conv import ConvConv2d
from xvolution.operators.registry import (
    OPERATORS,
    XVOLUTIONS,
    Operator,
    OperatorConfig,
    conversion,
    conversion_from_dict,
    operator_names,
    register,
)

__all__ = [
    "OPERATORS",
    "XVOLUTIONS",
    "ConvConv2d",
    "Operator",
    "OperatorConfig",
    "conversion",
    "conversion_from_dict",
    "operator_names",
    "register",
]
