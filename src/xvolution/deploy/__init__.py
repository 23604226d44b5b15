"""What a trained network becomes: the exact deployed form, the nearest static one, and files for other runtimes."""

from xvolution.deploy.collapse import CollapseReport, collapse
from xvolution.deploy.dynamic_kernel import dynamic_kernel
from xvolution.deploy.equalize import equalize
from xvolution.deploy.export import ExportError, ExportReport, export
from xvolution.deploy.quantize import QuantizationError, QuantizationReport, quantize
from xvolution.deploy.reparameterize import ReparameterizationError, layouts_of, reparameterize, unfolded_of

__all__ = [
    "CollapseReport",
    "ExportError",
    "ExportReport",
    "QuantizationError",
    "QuantizationReport",
    "ReparameterizationError",
    "collapse",
    "dynamic_kernel",
    "equalize",
    "export",
    "layouts_of",
    "quantize",
    "reparameterize",
    "unfolded_of",
]
