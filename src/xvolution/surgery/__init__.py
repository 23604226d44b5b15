"""Converting a network: what to replace, the norms that follow, and the proof that nothing changed."""

from xvolution.surgery.config import XVolutionConfig
from xvolution.surgery.convert import ConversionError, convert
from xvolution.surgery.summary import ConversionSummary

__all__ = ["ConversionError", "ConversionSummary", "XVolutionConfig", "convert"]
