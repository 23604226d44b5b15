"""X-volution: convolution and self-attention in training, one convolution in deployment."""

from xvolution import functional
from xvolution.deploy import (
    CollapseReport,
    ExportError,
    ExportReport,
    ReparameterizationError,
    collapse,
    dynamic_kernel,
    export,
    layouts_of,
    reparameterize,
    unfolded_of,
)
from xvolution.nn import (
    GlobalAttention1d,
    GlobalAttention2d,
    GlobalAttention3d,
    ImageAttention1d,
    ImageAttention2d,
    ImageAttention3d,
    LinearAttention1d,
    LinearAttention2d,
    LinearAttention3d,
    PixelShiftAttention1d,
    PixelShiftAttention2d,
    PixelShiftAttention3d,
    XVolution1d,
    XVolution2d,
    XVolution3d,
)
from xvolution.surgery import ConversionError, ConversionSummary, XVolutionConfig, convert

__version__ = "0.1.0"

__all__ = [
    "CollapseReport",
    "ConversionError",
    "ConversionSummary",
    "ExportError",
    "ExportReport",
    "GlobalAttention1d",
    "GlobalAttention2d",
    "GlobalAttention3d",
    "ImageAttention1d",
    "ImageAttention2d",
    "ImageAttention3d",
    "LinearAttention1d",
    "LinearAttention2d",
    "LinearAttention3d",
    "PixelShiftAttention1d",
    "PixelShiftAttention2d",
    "PixelShiftAttention3d",
    "ReparameterizationError",
    "XVolution1d",
    "XVolution2d",
    "XVolution3d",
    "XVolutionConfig",
    "__version__",
    "collapse",
    "convert",
    "dynamic_kernel",
    "export",
    "functional",
    "layouts_of",
    "reparameterize",
    "unfolded_of",
]
