"""The MobileViT block: self-attention between the pixels at the same position of all patches."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xvolution.conversion.register import register


@register(
    "mobilevit",
    "MobileViT block: a convolution, transformer layers over the pixels at the same position of all patches, and a fusion.",
    "Mehta, Rastegari: MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer, "
    "arXiv 2110.02178, 2021",
    pixels="n²",
)
class MobileViT2d(nn.Module):
    """``fuse([shortcut, project(fold(transformer(unfold(reduce(local(x))))))])``.

    ``local`` is a K x K convolution, ``reduce`` a 1x1 to ``dim`` channels without norm, ``project`` a 1x1 back and ``fuse`` a
    K x K convolution; all but ``reduce`` are followed by batch norm and SiLU. A transformer layer is pre-norm attention and a
    pre-norm multi-layer perceptron with SiLU, and a layer norm follows the last. Where the patches do not fill the
    map it is resized bilinearly for the transformer and back, as in the official code.

    The paper's block keeps channels and size, and its shortcut is x. As a convolution that changes them, ``local`` does (our
    choice); where height and width change, the shortcut is the output of ``local``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, device, dtype: those of
            ``nn.Conv2d``, of ``local``. The fusion has the same kernel size and padding mode, stride 1 and one group.
        bias: accepted for the interface; a batch norm follows, so that a bias would have no effect.
        dim: number of channels of the transformer; by default the output channels.
        depth: number of transformer layers.
        num_heads: number of attention heads, which must divide dim.
        patch_size: side length of the patches in pixels.
        mlp_ratio: hidden channels of the perceptron, as a multiple of dim.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W').

    Raises:
        ValueError: an option that is not positive, or heads that do not divide ``dim``.
    """

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
        device: Any = None,
        dtype: Any = None,
        *,
        dim: int | None = None,
        depth: int = 2,
        num_heads: int = 4,
        patch_size: int = 2,
        mlp_ratio: float = 2.0,
    ) -> None:
        super().__init__()
        dim = out_channels if dim is None else dim
        _check(dim=dim, depth=depth, num_heads=num_heads, patch_size=patch_size, mlp_ratio=mlp_ratio)
        if dim % num_heads:
            raise ValueError(
                f"dim={dim} does not divide into num_heads={num_heads}; choose dim a multiple of num_heads"
            )
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        window: tuple[Any, ...] = (kernel_size, stride, padding, dilation, groups, False, padding_mode)
        fusion: tuple[Any, ...] = (kernel_size, 1, "same", 1, 1, False, padding_mode)
        self.patch_size = patch_size
        self.local = _normalized(nn.Conv2d(in_channels, out_channels, *window, **factory))
        self.reduce = nn.Conv2d(out_channels, dim, 1, bias=False, **factory)
        self.layers = nn.Sequential(*(TransformerLayer(dim, num_heads, mlp_ratio, **factory) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, **factory)
        self.project = _normalized(nn.Conv2d(dim, out_channels, 1, bias=False, **factory))
        self.keeps_size = _keeps_size(self.local[0])
        shortcut = in_channels if self.keeps_size else out_channels
        self.fuse = _normalized(nn.Conv2d(shortcut + out_channels, out_channels, *fusion, **factory))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        local = self.local(x)
        y = self.project(self.attend(self.reduce(local)))
        return self.fuse(torch.cat([x if self.keeps_size else local, y], 1))

    def attend(self, x: Tensor) -> Tensor:
        """(N, dim, H, W) -> (N, dim, H, W): the transformer over patches."""
        size, p = x.shape[-2:], self.patch_size
        full = tuple(ceil(side / p) * p for side in size)
        if full != tuple(size):
            x = F.interpolate(x, full, mode="bilinear", align_corners=False)
        # Exporters to ONNX take attention with one dimension before the heads alone.
        tokens = self.norm(self.layers(unfold(x, p).flatten(0, 1)))
        x = fold(tokens.unflatten(0, (-1, p * p)), full, p)
        return x if full == tuple(size) else F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


class TransformerLayer(nn.Module):
    """Pre-norm multi-head self-attention and a pre-norm perceptron: (..., tokens, dim) -> (..., tokens, dim)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 2.0, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = int(dim * mlp_ratio)
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim, **factory)
        self.qkv = nn.Linear(dim, 3 * dim, **factory)
        self.out = nn.Linear(dim, dim, **factory)
        self.mlp_norm = nn.LayerNorm(dim, **factory)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden, **factory), nn.SiLU(), nn.Linear(hidden, dim, **factory))

    def forward(self, x: Tensor) -> Tensor:
        """(..., tokens, dim) -> (..., tokens, dim)."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(-2, -3) for part in qkv.unbind(-3))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)
        x = x + self.out(attended)
        return x + self.mlp(self.mlp_norm(x))


def unfold(x: Tensor, patch_size: int) -> Tensor:
    """(N, C, H, W) -> (N, P, T, C): of each of the P pixels of a patch, the T patches, row by row."""
    p = patch_size
    n, c, height, width = x.shape
    grid = x.reshape(n, c, height // p, p, width // p, p)
    return grid.permute(0, 3, 5, 2, 4, 1).reshape(n, p * p, -1, c)


def fold(tokens: Tensor, size: Sequence[int], patch_size: int) -> Tensor:
    """(N, P, T, C) -> (N, C, H, W): the inverse of ``unfold`` for a map of ``size`` (H, W)."""
    p = patch_size
    height, width = size
    n, _, _, c = tokens.shape
    grid = tokens.reshape(n, p, p, height // p, width // p, c)
    return grid.permute(0, 5, 3, 1, 4, 2).reshape(n, c, height, width)


def _normalized(conv: nn.Conv2d) -> nn.Sequential:
    norm = nn.BatchNorm2d(conv.out_channels, device=conv.weight.device, dtype=conv.weight.dtype)
    return nn.Sequential(conv, norm, nn.SiLU())


def _keeps_size(conv: nn.Module) -> bool:
    if not isinstance(conv, nn.Conv2d) or set(conv.stride) != {1}:
        return False
    if isinstance(conv.padding, str):
        return conv.padding == "same" or set(conv.kernel_size) == {1}
    sides = zip(conv.kernel_size, conv.padding, conv.dilation, strict=True)
    return all(2 * pad == dilation * (kernel - 1) for kernel, pad, dilation in sides)


def _check(**options: float) -> None:
    for name, value in options.items():
        if value <= 0:
            raise ValueError(f"{name} is {value}; it must be positive")
