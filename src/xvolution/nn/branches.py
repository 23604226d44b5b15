"""The attention branches by name, which options each takes, and which of them by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from xvolution.nn.global_attention import GlobalAttention1d, GlobalAttention2d, GlobalAttention3d
from xvolution.nn.image_attention import ImageAttention1d, ImageAttention2d, ImageAttention3d
from xvolution.nn.linear_attention import LinearAttention1d, LinearAttention2d, LinearAttention3d
from xvolution.nn.pixel_shift import PixelShiftAttention1d, PixelShiftAttention2d, PixelShiftAttention3d
from xvolution.nn.shared_attention import SharedValueAttention1d, SharedValueAttention2d, SharedValueAttention3d

NormLayer = Callable[[int], nn.Module]

#: Attention branches by name; of each, the one-, two- and three-dimensional class.
ATTENTION_BRANCHES: dict[str, tuple[Any, Any, Any]] = {
    "pssa": (PixelShiftAttention1d, PixelShiftAttention2d, PixelShiftAttention3d),
    "linear": (LinearAttention1d, LinearAttention2d, LinearAttention3d),
    "global": (GlobalAttention1d, GlobalAttention2d, GlobalAttention3d),
    "image": (ImageAttention1d, ImageAttention2d, ImageAttention3d),
    "shared": (SharedValueAttention1d, SharedValueAttention2d, SharedValueAttention3d),
}


def hadamard_defaults(norm_layer: NormLayer | None) -> dict[str, Any]:
    """What measured best on real images (``docs/results.md``); inner norms only where they fold."""
    folds = isinstance(norm_layer, type) and issubclass(norm_layer, nn.modules.batchnorm._BatchNorm)
    return {"gate": "sigmoid", "query_context": True, "global_term": True, "query_norm": folds, "window_norm": folds}


def build_attention(
    attention: str | nn.Module | None,
    dims: int,
    conv: Any,
    padding: int | Sequence[int] | str,
    common: dict[str, Any],
    branch_options: dict[str, Any],
) -> nn.Module | None:
    """The attention branch beside ``conv``, from its name or as it is given.

    Args:
        attention: a name of ``ATTENTION_BRANCHES``, a module, or None.
        dims: of the operator.
        conv: the convolution whose geometry the branch has.
        padding: of the convolution, as it was given.
        common: options of all branches: ``attention_ratio``, ``heads``, ``device``, ``dtype``.
        branch_options: options of which each branch takes some; those of others must be what they are when left out.

    Raises:
        ValueError: an unknown name, or an option that the branch does not take.
    """
    if isinstance(attention, nn.Module):
        return attention
    if attention is not None and attention not in ATTENTION_BRANCHES:
        raise ValueError(
            f"attention is {attention!r}; allowed are {', '.join(map(repr, ATTENTION_BRANCHES))}, None or a module"
        )
    of_image = {"separable", "channel_keys"}
    taken = {
        "pssa": set(branch_options) - of_image - {"query_key_norm"},
        "image": {"gate", *of_image},
        "global": {"query_key_norm"},
        "shared": {"gate", "window", "global_term", "global_init"},
    }.get(attention or "", ())
    neutral = {"similarity": "hadamard", "gate": "identity"}
    given = [
        name
        for name, value in branch_options.items()
        if name not in taken and value not in (None, False, neutral.get(name))
    ]
    of_channels = attention in ("image", "shared")
    if of_channels and common["heads"] != 1:
        given.append("heads")
    if given:
        raise ValueError(f"attention={attention!r} does not take {', '.join(given)}; leave it out")
    if attention is None:
        return None
    options = {name: value for name, value in branch_options.items() if name in taken}
    options |= {
        name: value for name, value in common.items() if not (of_channels and name in ("attention_ratio", "heads"))
    }
    branch = ATTENTION_BRANCHES[attention][dims - 1]
    if attention == "shared":
        options = {name: value for name, value in options.items() if value is not None}
        return branch(conv.in_channels, conv.out_channels, conv.groups, **options)
    return branch(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        padding,
        conv.dilation,
        conv.groups,
        conv.padding_mode,
        **options,
    )
