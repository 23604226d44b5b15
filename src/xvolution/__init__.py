"""X-volution: convolution and self-attention in training, one convolution in deployment."""

import os

try:
    os.getcwd()
except FileNotFoundError:
    # torch would end the process, with a message about a library that cannot be loaded.
    raise SystemExit("xvolution: the working folder has been deleted; go to another one.") from None

from xvolution import attention, functional
from xvolution import operators as operators  # registers what convert() takes by name
from xvolution.conversion.checkpoints import load_unconverted
from xvolution.conversion.config import XVolutionConfig
from xvolution.conversion.convert import ConversionError, convert
from xvolution.conversion.parameters import parameter_groups
from xvolution.conversion.register import OperatorConfig
from xvolution.conversion.summary import ConversionSummary, conversion_summary
from xvolution.deploy.collapse import CollapseReport, collapse
from xvolution.deploy.dynamic_kernel import dynamic_kernel
from xvolution.deploy.export import ExportError, ExportReport, export
from xvolution.deploy.measure import LayoutChoice, choose_layouts
from xvolution.deploy.reparameterize import layouts_of, reparameterize, unfolded_of
from xvolution.operator import ReparameterizationError, XVolution1d, XVolution2d, XVolution3d

__version__ = "0.2.0.dev0"

__all__ = [
    "CollapseReport",
    "ConversionError",
    "ConversionSummary",
    "ExportError",
    "ExportReport",
    "LayoutChoice",
    "OperatorConfig",
    "ReparameterizationError",
    "XVolution1d",
    "XVolution2d",
    "XVolution3d",
    "XVolutionConfig",
    "__version__",
    "attention",
    "choose_layouts",
    "collapse",
    "conversion_summary",
    "convert",
    "dynamic_kernel",
    "export",
    "functional",
    "layouts_of",
    "load_unconverted",
    "parameter_groups",
    "reparameterize",
    "unfolded_of",
]
