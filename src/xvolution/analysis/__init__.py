"""Analysis of a trained network: where attention acts, which pixels it weights, and the accuracy lost without it."""

from xvolution.analysis.attention_maps import BranchMaps, attention_kernel, branch_maps
from xvolution.analysis.branch_statistics import (
    BranchStatistics,
    attending_operator,
    attending_operators,
    branch_statistics,
    silenced,
)
from xvolution.analysis.receptive_field import half_radius, receptive_field

__all__ = [
    "BranchMaps",
    "BranchStatistics",
    "attending_operator",
    "attending_operators",
    "attention_kernel",
    "branch_maps",
    "branch_statistics",
    "half_radius",
    "receptive_field",
    "silenced",
]
