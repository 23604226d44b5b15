"""Conversion of network descriptions from older versions to the current format.

Format 1 had one flat configuration for all attention branches, told apart by ``attention`` and ``similarity``, that said where it
goes as well. Format 2 has a type and options of its own for each operator, and says where beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Of what this version writes.
FORMAT = 2

_PLACEMENT = ("stages", "kernel_sizes", "names")
#: Branches of format 1 by ``attention`` and, of ``pssa``, ``similarity``: the branch, and its options by their old names.
_BRANCHES: dict[str, tuple[str, dict[str, str]]] = {
    "hadamard": (
        "pixel_shift",
        {
            "attention_ratio": "attention_ratio",
            "gate": "gate",
            "window": "window",
            "shift_distance": "dilation",
            "query_context": "pooled_query",
            "global_term": "pooled_key",
            "global_init": "pooled_key_init",
            "query_norm": "query_norm",
            "window_norm": "window_norm",
        },
    ),
    "dot": (
        "pixel_shift_dot",
        {
            "attention_ratio": "attention_ratio",
            "heads": "num_heads",
            "window": "window",
            "shift_distance": "dilation",
        },
    ),
    "linear": ("linear", {"attention_ratio": "attention_ratio", "heads": "num_heads"}),
    "global": ("global", {"attention_ratio": "attention_ratio", "heads": "num_heads", "query_key_norm": "qk_norm"}),
    "image": ("channel_gate", {"gate": "gate", "separable": "separable", "channel_keys": "channel_keys"}),
    "shared": (
        "gated_depthwise",
        {"gate": "gate", "window": "window", "global_term": "pooled_value", "global_init": "pooled_value_init"},
    ),
}
#: Names of operators in format 1 that are others now.
OPERATOR_NAMES = {
    "global": "global-attention",
    "xvolution-dot": "pixel_shift_dot",
    "xvolution-linear": "linear",
    "xvolution-global": "global",
    "xvolution-image": "channel_gate",
    "xvolution-shared": "gated_depthwise",
}
_OPTION_NAMES = {"heads": "num_heads", "query_key_norm": "qk_norm"}
_OWN = ("num_conv_branches", "norm_layer", "zero_init", "kernel_size")


def upgrade_conversion(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The conversion of a network in format 1 as ``Conversion.to_dict`` writes it; None stays None."""
    if values is None:
        return None
    # Format 1 knew no other place than the depthwise convolutions themselves.
    where = {**{name: values.get(name) for name in _PLACEMENT}, "at_projections": False}
    return {"operator": _upgraded_operator(values), "where": where}


def _upgraded_operator(values: Mapping[str, Any]) -> dict[str, Any]:
    if "operator" in values:
        name = OPERATOR_NAMES.get(values["operator"], values["operator"])
        options = {_OPTION_NAMES.get(option, option): value for option, value in values.get("options", {}).items()}
        if "similarity" in options:
            options["attention"] = _BRANCHES[options.pop("similarity")][0]
        return {"type": "operator", "operator": name, "options": options, "kernel_size": values.get("kernel_size")}
    own = {name: values[name] for name in _OWN if name in values}
    return {"type": "xvolution", "attention": upgrade_attention(values), **own}


def upgrade_attention(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The branch of a flat configuration of format 1 with its options; what was left open there is left out."""
    attention = values.get("attention", "pssa")
    if attention is None:
        return None
    name, renamed = _BRANCHES[values.get("similarity", "hadamard") if attention == "pssa" else attention]
    options = {new: values[old] for old, new in renamed.items() if values.get(old) is not None}
    if name.startswith("pixel_shift"):
        options.setdefault("window", "conv")
    if name == "pixel_shift":  # what is open today depends on the convolution
        options = {"attention_ratio": 0.25, "pooled_query": True} | options
    if name == "pixel_shift_dot" and isinstance(options.get("dilation"), list | tuple):
        (options["dilation"],) = options["dilation"]
    return {"type": name, **options}
