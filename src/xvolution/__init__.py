"""X-volution: convolution and self-attention in training, one convolution in deployment.

The names are imported when they are used, so that the command line answers `--help`, a mistake and Ctrl-C without torch.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

try:
    os.getcwd()
except FileNotFoundError:
    # torch would end the process, with a message about a library that cannot be loaded.
    raise SystemExit("xvolution: the working folder has been deleted; go to another one.") from None

if TYPE_CHECKING:
    from xvolution import attention as attention
    from xvolution import functional as functional
    from xvolution import operators as operators
    from xvolution.conversion.checkpoints import load_unconverted as load_unconverted
    from xvolution.conversion.config import XVolutionConfig as XVolutionConfig
    from xvolution.conversion.convert import ConversionError as ConversionError
    from xvolution.conversion.convert import convert as convert
    from xvolution.conversion.parameters import parameter_groups as parameter_groups
    from xvolution.conversion.register import OperatorConfig as OperatorConfig
    from xvolution.conversion.summary import ConversionSummary as ConversionSummary
    from xvolution.conversion.summary import conversion_summary as conversion_summary
    from xvolution.deploy.collapse import CollapseReport as CollapseReport
    from xvolution.deploy.collapse import collapse as collapse
    from xvolution.deploy.dynamic_kernel import dynamic_kernel as dynamic_kernel
    from xvolution.deploy.export import ExportError as ExportError
    from xvolution.deploy.export import ExportReport as ExportReport
    from xvolution.deploy.export import export as export
    from xvolution.deploy.measure import LayoutChoice as LayoutChoice
    from xvolution.deploy.measure import choose_layouts as choose_layouts
    from xvolution.deploy.reparameterize import layouts_of as layouts_of
    from xvolution.deploy.reparameterize import reparameterize as reparameterize
    from xvolution.deploy.reparameterize import unfolded_of as unfolded_of
    from xvolution.loading import load as load
    from xvolution.operator import ReparameterizationError as ReparameterizationError
    from xvolution.operator import XVolution1d as XVolution1d
    from xvolution.operator import XVolution2d as XVolution2d
    from xvolution.operator import XVolution3d as XVolution3d

__version__ = "0.2.0.dev0"

#: The module of each name.
_HOMES = {
    "CollapseReport": "deploy.collapse",
    "ConversionError": "conversion.convert",
    "ConversionSummary": "conversion.summary",
    "ExportError": "deploy.export",
    "ExportReport": "deploy.export",
    "LayoutChoice": "deploy.measure",
    "OperatorConfig": "conversion.register",
    "ReparameterizationError": "operator",
    "XVolution1d": "operator",
    "XVolution2d": "operator",
    "XVolution3d": "operator",
    "XVolutionConfig": "conversion.config",
    "choose_layouts": "deploy.measure",
    "collapse": "deploy.collapse",
    "conversion_summary": "conversion.summary",
    "convert": "conversion.convert",
    "dynamic_kernel": "deploy.dynamic_kernel",
    "export": "deploy.export",
    "layouts_of": "deploy.reparameterize",
    "load": "loading",
    "load_unconverted": "conversion.checkpoints",
    "parameter_groups": "conversion.parameters",
    "reparameterize": "deploy.reparameterize",
    "unfolded_of": "deploy.reparameterize",
}
_MODULES = ("attention", "functional", "operators")
#: Modules that are there as attributes, as they are with an import of everything.
_INNER_MODULES = ("conversion", "deploy", "operator")

__all__ = sorted([*_HOMES, *_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES and name not in _MODULES and name not in _INNER_MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # The first name brings all of them: most of the time goes into torch, and the modules know their parts from then on.
    for home in (*_MODULES, *_HOMES.values()):
        importlib.import_module(f"{__name__}.{home}")
    for each, home in _HOMES.items():
        globals()[each] = getattr(importlib.import_module(f"{__name__}.{home}"), each)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_INNER_MODULES})
