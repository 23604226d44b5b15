"""The training step of ``PixelShift`` as one operator of torch's dispatcher, used where measurements show a gain."""

from xvolution.attention.fused.step import add_branch, serves

__all__ = ["add_branch", "serves"]
