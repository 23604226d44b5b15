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
)
from xvolution.nn import GlobalAttention2d, LinearAttention2d, PixelShiftAttention2d, XVolution2d
from xvolution.surgery import ConversionError, ConversionSummary, XVolutionConfig, convert

__version__ = "0.1.0"

__all__ = [
    "CollapseReport",
    "ConversionError",
    "ConversionSummary",
    "ExportError",
    "ExportReport",
    "GlobalAttention2d",
    "LinearAttention2d",
    "PixelShiftAttention2d",
    "ReparameterizationError",
    "XVolution2d",
    "XVolutionConfig",
    "__version__",
    "collapse",
    "convert",
    "dynamic_kernel",
    "export",
    "functional",
    "layouts_of",
    "reparameterize",
]
