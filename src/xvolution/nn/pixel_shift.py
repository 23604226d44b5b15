"""Pixel shift self-attention (PSSA): attention over a window, by shifts and element-wise products, in O(H W)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xvolution.functional import Similarity, as_tuple, per_channel, window_taps
from xvolution.kernels.gate import wants_single_precision
from xvolution.nn.geometry import Geometry, conv_over, image_mean, pointwise
from xvolution.nn.precision import apply_wide, narrow, widen, without_autocast

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda query: query,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}

#: The weight of the term over all pixels when training starts. It hardly moves in training, since a norm follows it, so where it
#: starts decides how much of the whole image the branch hears. At 0 it has no effect; at 4 most of the branch is the same at
#: every pixel, and the norms rest on as few samples as the batch has images (``docs/results.md``).
GLOBAL_INIT = 1.0


def attention_channels(out_channels: int, ratio: float, groups: int, heads: int) -> int:
    """``ratio`` times the output channels, rounded up to whole groups and heads."""
    if not ratio > 0:
        raise ValueError(f"attention_ratio is {ratio}; it must be a positive number such as 1/4")
    multiple = groups * heads
    return multiple * ceil(out_channels * ratio / multiple)


def check_heads(heads: int, out_channels: int, groups: int) -> None:
    """Heads are counted in each group; they share its output channels evenly."""
    if heads < 1 or (out_channels // groups) % heads:
        raise ValueError(
            f"heads is {heads}; it must be positive and divide the {out_channels // groups} output channels of each group"
        )


#: Norms that torch has for each number of dimensions; whichever is asked for, the operator takes the one of its own.
_NORM_FAMILIES: tuple[tuple[Any, ...], ...] = (
    (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


def build_norm(
    norm_layer: Callable[[int], nn.Module] | None, channels: int, dims: int, factory: dict[str, Any]
) -> nn.Module:
    """``norm_layer(channels)`` on the device and in the dtype of the layer; the identity when there is none."""
    if norm_layer is None:
        return nn.Identity()
    family = next((family for family in _NORM_FAMILIES if norm_layer in family), None)
    norm_layer = norm_layer if family is None else family[dims - 1]
    return norm_layer(channels).to(**{name: value for name, value in factory.items() if value is not None})


class PixelShiftAttention(nn.Module):
    """The PSSA branch: maps (N, C_in, H, W) to (N, C_out, H', W') over the window of a convolution.

    Its subclasses ``PixelShiftAttention1d``, ``2d`` and ``3d`` set the number of dimensions.

    ``similarity="hadamard"`` (merges into one convolution)::

        a_0 = W^v ( φ(q_0) ⊙ (Σ_δ w_δ ⊙ k_δ + g ⊙ mean(k)) ),      q_0 = W^q x_0 + W^m mean(x) + b^q

    ``similarity="dot"`` (the paper's equation 9)::

        a_0 = Σ_δ w_{δ,h} <q_0, k_δ>_h v_δ^{(h)}

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode: the geometry of the
            convolution beside it, with the meaning of ``nn.Conv2d``.
        attention_ratio: attention channels A as a fraction of the output channels (rounded up to whole groups and heads).
        similarity: ``"hadamard"`` or ``"dot"``.
        heads: heads in each group (``dot``).
        gate: φ, ``"identity"``, ``"sigmoid"`` or ``"tanh"`` (``hadamard``).
        window: size of the shift window; that of the convolution when None.
        shift_distance: pixels between neighbouring shifts; the convolution's dilation when None. Several distances
            (``(1, 2, 4)``) sum several windows (``hadamard``).
        query_context: let the query see the whole image too, by ``W^m mean(x)`` (``hadamard``).
        global_term: add the term over all pixels, one weight for each channel (``hadamard``).
        global_init: what these weights start with; ``GLOBAL_INIT`` when None.
        query_norm, window_norm: normalization of q and of the window sum; both act after padding, so batch norm folds
            (``hadamard``). A class such as ``nn.BatchNorm2d``, which is taken in the branch's dimensions, or None.
        device, dtype: of the parameters.

    Raises:
        ValueError: an option that is unknown or does not belong to the chosen similarity.

    Source: X-volution, section 3.2 and equation 9. Keys have neither bias nor normalization: with zero padding a bias
    before the window would make the border differ after merging.
    """

    dims: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = "same",
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        *,
        attention_ratio: float = 0.25,
        similarity: Similarity = "hadamard",
        heads: int = 1,
        gate: str = "identity",
        window: int | Sequence[int] | None = None,
        shift_distance: int | Sequence[int] | None = None,
        query_context: bool = False,
        global_term: bool = False,
        global_init: float | None = None,
        query_norm: Callable[[int], nn.Module] | None = None,
        window_norm: Callable[[int], nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hadamard_only = {
            "gate": gate != "identity",
            "query_context": query_context,
            "global_term": global_term,
            "global_init": global_init is not None,
            "query_norm": query_norm is not None,
            "window_norm": window_norm is not None,
            "several shift distances": isinstance(shift_distance, Sequence) and len(shift_distance) > 1,
        }
        _check_similarity(similarity, heads, gate, hadamard_only)
        check_heads(heads, out_channels, groups)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        channels = attention_channels(out_channels, attention_ratio, groups, heads)
        geometry = Geometry.create(kernel_size, stride, padding, dilation, padding_mode, self.dims)
        windows = [
            geometry.recentred(as_tuple(window or geometry.kernel_size, self.dims), distance)
            for distance in _distances(shift_distance, geometry.dilation)
        ]
        self.similarity, self.heads, self.groups, self.gate = similarity, heads, groups, gate
        grouped: dict[str, Any] = {"groups": groups, "bias": False, **factory}
        self.query = conv_over(geometry.centre(), in_channels, channels, **{**grouped, "bias": True})
        self.context = pointwise(self.dims, in_channels, channels, **grouped) if query_context else None
        self.key = pointwise(self.dims, in_channels, channels, **grouped)
        self.mean_weight = build_mean_weight(channels, global_term, global_init, factory)
        if similarity == "hadamard":
            self.windows = nn.ModuleList(
                conv_over(shifts, channels, channels, **{**grouped, "groups": channels}) for shifts in windows
            )
            self.query_norm = build_norm(query_norm, channels, self.dims, factory)
            self.window_norm = build_norm(window_norm, channels, self.dims, factory)
            self.value = pointwise(self.dims, channels, out_channels, **grouped)
        else:
            self.shifts = windows[0]
            taps = windows[0].kernel_size
            self.window_weight = nn.Parameter(torch.full((groups * heads, 1, *taps), 1 / prod(taps), **factory))
            self.value = pointwise(self.dims, in_channels, out_channels, **grouped)

    @property
    def channels(self) -> int:
        """Attention channels A."""
        return self.key.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        return self._hadamard(x) if self.similarity == "hadamard" else self._dot(x)

    def in_context(self, query: Tensor, x: Tensor) -> Tensor:
        """``W^q x_0 + b^q`` with ``W^m mean(x)`` added, where the query sees the whole image: (N, A, H', W')."""
        return query if self.context is None else query + self.context(image_mean(x))

    def _hadamard(self, x: Tensor) -> Tensor:
        query, key = self.query_norm(self.in_context(self.query(x), x)), self.key(x)
        first, *others = (convolve_window(window, key) for window in self.windows)
        window_sum = sum(others, start=first)
        if self.mean_weight is not None:
            mean_key = image_mean(key)
            window_sum = window_sum + per_channel(self.mean_weight.to(key.dtype), key) * mean_key
        source = query.dtype
        query, window_sum = widen(query, self.window_norm(window_sum))
        return apply_wide(self.value, GATES[self.gate](query) * window_sum, source)

    def _dot(self, x: Tensor) -> Tensor:
        source_query = self.query(x)
        query, key, value = widen(source_query, self.key(x), self.value(x))
        shifts, heads = self.shifts, self.groups * self.heads
        key_taps, value_taps = (
            window_taps(shifts.pad(maps), shifts.kernel_size, shifts.stride, shifts.dilation) for maps in (key, value)
        )
        weights = per_channel(self.window_weight.to(query.dtype).flatten(1), key)
        query = query.unflatten(1, (heads, -1))
        attended = torch.zeros_like(value_taps[0])
        for tap, (key_tap, value_tap) in enumerate(zip(key_taps, value_taps, strict=True)):
            scores = weights[:, tap] * (query * key_tap.unflatten(1, (heads, -1))).sum(2)
            attended = attended + (scores.unsqueeze(2) * value_tap.unflatten(1, (heads, -1))).flatten(1, 2)
        return attended if attended.dtype == source_query.dtype else narrow(attended, self.value.weight.dtype)

    def extra_repr(self) -> str:
        if self.similarity == "dot":
            shifts = self.shifts
            return (
                f"similarity=dot, heads={self.heads}, window={shifts.kernel_size}, shift_distance={shifts.dilation}, "
                f"groups={self.groups}"
            )
        window = f"window={self.windows[0].kernel_size}, shift_distance={tuple(w.dilation for w in self.windows)}"
        context, term = self.context is not None, self.mean_weight is not None
        return f"similarity=hadamard, gate={self.gate}, {window}, query_context={context}, global_term={term}"


class PixelShiftAttention1d(PixelShiftAttention):
    """``PixelShiftAttention`` of signals: (N, C_in, L) -> (N, C_out, L')."""

    dims = 1


class PixelShiftAttention2d(PixelShiftAttention):
    """``PixelShiftAttention`` of images: (N, C_in, H, W) -> (N, C_out, H', W')."""

    dims = 2


class PixelShiftAttention3d(PixelShiftAttention):
    """``PixelShiftAttention`` of videos and volumes: (N, C_in, D, H, W) -> (N, C_out, D', H', W')."""

    dims = 3


def convolve_window(window: Any, key: Tensor) -> Tensor:
    """``window(key)``, in fp32 where that gives torch's gradients quickly, or rightly."""
    if not (window.weight.requires_grad and wants_single_precision(key, window.weight, window.stride, window.dilation)):
        return window(key)
    with without_autocast(key.device):
        return window._conv_forward(key.float(), window.weight.float(), None).to(key.dtype)


def _check_similarity(similarity: str, heads: int, gate: str, hadamard_only: dict[str, bool]) -> None:
    if similarity not in ("hadamard", "dot"):
        raise ValueError(f"similarity is {similarity!r}; allowed are 'hadamard' and 'dot'")
    if gate not in GATES:
        raise ValueError(f"gate is {gate!r}; allowed are {', '.join(map(repr, GATES))}")
    if similarity == "hadamard" and heads != 1:
        raise ValueError(
            f"heads is {heads}, but similarity='hadamard' has one weight for each channel; use similarity='dot'"
        )
    given = [name for name, used in hadamard_only.items() if used]
    if similarity == "dot" and given:
        raise ValueError(
            f"similarity='dot' does not take {', '.join(given)}; leave it out or use similarity='hadamard'"
        )


def build_mean_weight(
    channels: int, global_term: bool, global_init: float | None, factory: dict[str, Any]
) -> nn.Parameter | None:
    """The weights (A,) of the term over all pixels, where there is one."""
    if global_init is not None and not global_term:
        raise ValueError(f"global_init is {global_init}, but there is no term over all pixels; pass global_term=True")
    start = GLOBAL_INIT if global_init is None else global_init
    return nn.Parameter(torch.full((channels,), float(start), **factory)) if global_term else None


def _distances(shift_distance: int | Sequence[int] | None, dilation: tuple[int, ...]) -> list[tuple[int, ...]]:
    if shift_distance is None:
        return [dilation]
    distances = [shift_distance] if isinstance(shift_distance, int) else list(shift_distance)
    if not distances or min(distances) < 1:
        raise ValueError(f"shift_distance is {shift_distance}; it must be a positive integer or several of them")
    return [(distance,) * len(dilation) for distance in distances]
