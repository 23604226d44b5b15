"""Looking inside a trained operator: how much attention says where, and which neighbours it weighs."""

from xvolution.analysis.attention_maps import BranchMaps, attention_kernel, branch_maps

__all__ = ["BranchMaps", "attention_kernel", "branch_maps"]
