"""Analysis of attention in a trained network: the accuracy lost without it, where it is active, and its receptive field.

The names are imported when they are used, so that the command line answers `--help` without the training libraries.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xvolution.explain.run import Explanation as Explanation
    from xvolution.explain.run import explain as explain

__all__ = ["Explanation", "explain"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.run"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
