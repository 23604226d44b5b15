"""X-volution: convolution and self-attention in training, one convolution in deployment."""

from xvolution import functional
from xvolution.deploy import ReparameterizationError, layouts_of, reparameterize
from xvolution.nn import GlobalAttention2d, LinearAttention2d, PixelShiftAttention2d, XVolution2d
from xvolution.surgery import ConversionError, ConversionSummary, XVolutionConfig, convert

__version__ = "0.1.0"

__all__ = [
    "ConversionError",
    "ConversionSummary",
    "GlobalAttention2d",
    "LinearAttention2d",
    "PixelShiftAttention2d",
    "ReparameterizationError",
    "XVolution2d",
    "XVolutionConfig",
    "__version__",
    "convert",
    "functional",
    "layouts_of",
    "reparameterize",
]
