"""What a trained network becomes: the exact deployed form, the nearest static one, and files for other runtimes."""

from xvolution.deploy.collapse import CollapseReport, collapse
from xvolution.deploy.dynamic_kernel import dynamic_kernel
from xvolution.deploy.export import ExportError, ExportReport, export
from xvolution.deploy.reparameterize import ReparameterizationError, layouts_of, reparameterize, unfolded_of

__all__ = [
    "CollapseReport",
    "ExportError",
    "ExportReport",
    "ReparameterizationError",
    "collapse",
    "dynamic_kernel",
    "export",
    "layouts_of",
    "reparameterize",
    "unfolded_of",
]
