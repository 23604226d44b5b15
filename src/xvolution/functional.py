"""The formulas of the attention branches as slow references, and the fused operator of a training step.

Notation (X-volution, Chen, Wang, Ni, arXiv 2106.02253, section 3): ``x_0`` is the pixel at the centre of a window, ``x_δ`` the
pixel at offset ``δ`` from it, ``W^q``, ``W^k``, ``W^v`` are 1x1 convolutions and ``w_δ`` is one weight for each channel (or head)
and offset. Every fast path of the library is tested against these functions, outputs and gradients.
"""

from xvolution.attention.channel_gate import channel_gate_attention
from xvolution.attention.fused.step import add_attention
from xvolution.attention.gated_depthwise import gated_depthwise_attention
from xvolution.attention.global_attention import global_attention
from xvolution.attention.linear import linear_attention
from xvolution.attention.pixel_shift import pixel_shift_attention, pixel_shift_products
from xvolution.attention.pixel_shift_dot import pixel_shift_dot_attention
from xvolution.attention.reference import dynamic_conv, shift

#: The names of the family; the dimensions are those of ``x``.
dynamic_conv1d = dynamic_conv2d = dynamic_conv3d = dynamic_conv

__all__ = [
    "add_attention",
    "channel_gate_attention",
    "dynamic_conv",
    "dynamic_conv1d",
    "dynamic_conv2d",
    "dynamic_conv3d",
    "gated_depthwise_attention",
    "global_attention",
    "linear_attention",
    "pixel_shift_attention",
    "pixel_shift_dot_attention",
    "pixel_shift_products",
    "shift",
]
