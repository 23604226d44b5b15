"""The plain convolution: the baseline."""

from torch import nn

from xvolution.conversion.register import register

register("conv", "The plain convolution.", "torch.nn.Conv2d")(nn.Conv2d)
