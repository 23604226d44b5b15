"""Conversion of files of older versions to this version's description of networks and trainings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xvolution.conversion.upgrade import FORMAT, OPERATOR_NAMES, upgrade_attention, upgrade_conversion
from xvolution.training.errors import InputError

#: Operators of format 1 that set fields of the flat configuration of X-volution.
_FORMS: dict[str, dict[str, Any]] = {
    "xvolution": {},
    "xvolution-dot": {"similarity": "dot"},
    "xvolution-linear": {"attention": "linear"},
    "xvolution-global": {"attention": "global"},
    "xvolution-image": {"attention": "image"},
    "xvolution-shared": {"attention": "shared"},
    "conv-conv": {"attention": None, "num_conv_branches": 2},
    "conv-window": {"attention": "shared", "gate": "one"},
}
_CONTROLS = ("conv-conv", "conv-window")
_PLACEMENT = ("stages", "kernel_sizes", "names")
_OWN_DEFAULTS = {"num_conv_branches": 1, "norm_layer": "BatchNorm2d", "zero_init": True, "kernel_size": None}


def upgrade(header: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a network in a weights file, a checkpoint or an ONNX file, in this version's format.

    Raises:
        InputError: a newer version wrote it.
    """
    written = header.get("format", 1)
    if not isinstance(written, int) or written > FORMAT:
        raise InputError(
            f"the file has format {written}, but this version of xvolution reads formats up to {FORMAT} "
            "only; install a newer version."
        )
    if written == FORMAT:
        return dict(header)
    values = dict(header)
    if isinstance(values.get("model"), dict):
        model = dict(values["model"])
        try:
            model["conversion"] = upgrade_conversion(model.get("conversion"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"the file's description of its network cannot be read ({error}).") from error
        values["model"] = model
    # Format 1 did not say what a network is for: detectors have an architecture, classifiers a name.
    kind = "detect" if isinstance(values.get("model"), dict) and "architecture" in values["model"] else "classify"
    return {"type": kind, **values, "format": FORMAT}


def upgrade_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a run's configuration in this version.

    In format 1 the operator's options stood in a flat configuration ``xvolution``, beside where it goes.
    """
    given = dict(values)
    if "xvolution" not in given:
        return given
    flat = dict(given.pop("xvolution"))
    where = {**{name: flat.pop(name, None) for name in _PLACEMENT}, "at_projections": False}
    operator, options = given.get("operator", "xvolution"), dict(given.get("operator_options") or {})
    if operator in _FORMS:
        flat = {**flat, **_FORMS[operator], **options}
        attention = upgrade_attention(flat) or {"type": operator}
        branch = attention.pop("type")
        own = {name: flat[name] for name, usual in _OWN_DEFAULTS.items() if flat.get(name, usual) != usual}
        given["operator"] = operator if operator in _CONTROLS else branch
        given["operator_options"] = {**attention, **own}
    else:
        renamed = {"heads": "num_heads", "query_key_norm": "qk_norm"}
        given["operator"] = OPERATOR_NAMES.get(operator, operator)
        given["operator_options"] = {renamed.get(name, name): value for name, value in options.items()}
    return {**given, **where}
