"""Reference semantics of X-volution, written to be read: slow and obviously right.

Notation (X-volution, Chen, Wang, Ni, arXiv 2106.02253, section 3): ``x_0`` is the pixel at the centre of a window, ``x_δ`` the
pixel at offset ``δ`` from it, ``W^q``, ``W^k``, ``W^v`` are 1x1 convolutions and ``w_δ`` is one weight for each channel (or head)
and offset. Every fast path of the library is tested against these functions, outputs and gradients.

Shapes are written for images, (N, C, H, W). Signals (N, C, L) and videos (N, C, D, H, W) work alike: a window has as
many sizes as there are dimensions after the channels.
"""

from xvolution.functional.attention import (
    Similarity,
    image_attention,
    linear_attention,
    pixel_shift_attention,
    pixel_shift_products,
    shared_value_attention,
)
from xvolution.functional.training_step import add_attention
from xvolution.functional.windows import (
    PaddingPairs,
    as_tuple,
    centre_of,
    convolution,
    dynamic_conv,
    dynamic_conv1d,
    dynamic_conv2d,
    dynamic_conv3d,
    pad,
    padding_pairs,
    per_channel,
    shift,
    spatial,
    window_taps,
)

__all__ = [
    "PaddingPairs",
    "Similarity",
    "add_attention",
    "as_tuple",
    "centre_of",
    "convolution",
    "dynamic_conv",
    "dynamic_conv1d",
    "dynamic_conv2d",
    "dynamic_conv3d",
    "image_attention",
    "linear_attention",
    "pad",
    "padding_pairs",
    "per_channel",
    "pixel_shift_attention",
    "pixel_shift_products",
    "shared_value_attention",
    "shift",
    "spatial",
    "window_taps",
]
