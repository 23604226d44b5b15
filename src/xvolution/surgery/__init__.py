"""Converting a network: what to replace, the norms that follow, and the proof that nothing changed."""

from xvolution.surgery.config import Conversion, XVolutionConfig
from xvolution.surgery.convert import ConversionError, convert
from xvolution.surgery.summary import ConversionSummary

__all__ = ["Conversion", "ConversionError", "ConversionSummary", "XVolutionConfig", "convert"]
