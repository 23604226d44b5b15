"""The training step of ``PixelShift`` as one operator of torch's dispatcher, where that was measured to be worth it."""

from xvolution.attention.fused.step import add_branch, serves

__all__ = ["add_branch", "serves"]
