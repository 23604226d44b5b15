"""Comparison of operators on one data set: a grid of trainings with one recipe, statistics, and a report on one page.

The names are imported when they are used, so that the command line answers `--help` without the training libraries.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xvolution.compare.config import CompareConfig as CompareConfig
    from xvolution.compare.preset_files import preset as preset
    from xvolution.compare.preset_files import preset_names as preset_names
    from xvolution.compare.run import Comparison as Comparison
    from xvolution.compare.run import compare as compare
    from xvolution.compare.variants import Variant as Variant
    from xvolution.compare.variants import parse_variants as parse_variants

_HOMES = {
    "CompareConfig": "config",
    "Comparison": "run",
    "Variant": "variants",
    "compare": "run",
    "parse_variants": "variants",
    "preset": "preset_files",
    "preset_names": "preset_files",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
