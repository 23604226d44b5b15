"""A global context (GC) behind a convolution: softmax attention with one query for all pixels, added to each of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from xvolution.conversion.register import register
from xvolution.operators.around_convolution import WithBottleneck2d, hidden_channels


@register(
    "gc",
    "A convolution plus a vector that is computed from an attention-weighted mean of its outputs: global context.",
    "Cao, Xu, Lin, Wei, Hu: GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond, arXiv 1904.11492, 2019",
)
class GlobalContext2d(WithBottleneck2d):
    """``y = z + W² relu(norm(W¹ Σ_t softmax_t(<w, z_t>) z_t)) `` with ``z = conv(x)`` and a layer norm.

    In the place of a convolution of a network it keeps the convolution with its weights, and the norm that follows, which then is
    a part of ``z``. ``W²`` starts at zero, as in the official code, so that the network computes what it computed before. The
    bias of the scores, which softmax takes out again, is left out.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: those of
            ``nn.Conv2d``; ``W¹`` and ``W²`` are not grouped.
        reduction: number of output channels for each hidden channel between W¹ and W²; there are at least 8 hidden
            channels.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W').

    Raises:
        ValueError: ``reduction`` below 1.
    """

    def _add(self, conv: nn.Conv2d, factory: dict[str, Any], reduction: int = 16) -> None:
        channels, hidden = conv.out_channels, hidden_channels(conv.out_channels, reduction)
        self.score = nn.Conv2d(channels, 1, 1, bias=False, **factory)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, **factory),
            nn.LayerNorm([hidden, 1, 1], **factory),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1, **factory),
        )
        for parameter in self.transform[3].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W')."""
        z = self.convolved(x)
        weights = self.score(z).flatten(2).softmax(2).to(z.dtype)
        context = z.flatten(2) @ weights.transpose(1, 2)
        return z + self.transform(context.unsqueeze(3))
