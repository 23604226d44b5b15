"""The demo: a convolutional network and the same network with X-volution, from training to ONNX Runtime, on one page.

The names are imported when they are used, so that the command line answers `--help` without the training libraries.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xvolution.demo.run import DemoResult as DemoResult
    from xvolution.demo.run import run_demo as run_demo

__all__ = ["DemoResult", "run_demo"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.run"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
