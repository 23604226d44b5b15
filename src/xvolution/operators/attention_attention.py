"""Two attention branches in parallel: the control for branches of the same kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from xvolution.attention import attention_config
from xvolution.conversion.register import register
from xvolution.operator import XVolution2d


@register(
    "attention-attention",
    "The sum of two attention branches, each with a batch norm: X-volution's structure without the convolution.",
    "The control of X-volution's ablation (Chen, Wang, Ni: X-volution: On the unification of convolution and "
    "self-attention, arXiv 2106.02253, 2021, section 4)",
)
class AttentionAttention2d(nn.Module):
    """``y = norm_1(attention_1(x)) + norm_2(attention_2(x))``, with the attention branch that ``XVolution2d`` has.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, device, dtype: those of
            ``nn.Conv2d``.
        bias: has no effect; the norms have one.
        attention: name of the attention branch that is used twice.
        attention_ratio: query and key channels of both branches as a fraction of the output channels.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W').
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
        attention: str = "pixel_shift",
        attention_ratio: float = 0.25,
    ) -> None:
        super().__init__()
        geometry: tuple[Any, ...] = (kernel_size, stride, padding, dilation, groups, False, padding_mode)
        branch = attention_config({"type": attention, "attention_ratio": attention_ratio})
        options: dict[str, Any] = {"attention": branch, "zero_init": False, "device": device, "dtype": dtype}
        # The operator knows where its branch stands; of each, that branch and its norm are kept.
        both = [XVolution2d(in_channels, out_channels, *geometry, **options) for _ in range(2)]
        self.attentions = nn.ModuleList(each.attention for each in both)
        self.norms = nn.ModuleList(each.attention_norm for each in both)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        first, second = (norm(branch(x)) for branch, norm in zip(self.attentions, self.norms, strict=True))
        return first + second
