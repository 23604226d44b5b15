"""Controls: forms of X-volution without one of its parts, for comparison.

``conv-conv`` is the control of the paper's ablation (section 4). ``conv-window`` is that of ``gated_depthwise``. ``conv-diverse``
is the Diverse Branch Block of Ding, Zhang, Han and Ding (CVPR 2021, arXiv 2103.13425).
"""

from xvolution.attention import GatedDepthwise
from xvolution.conversion.config import XVolutionConfig
from xvolution.conversion.register import FORMS, Form

FORMS["conv-conv"] = Form(
    XVolutionConfig(attention=None, num_conv_branches=2),
    "The sum of two convolutions, each with a norm: X-volution's structure without attention.",
)
FORMS["conv-diverse"] = Form(
    XVolutionConfig(attention=None, diverse_branches=True),
    "The sum of four branches of convolutions and pooling, without attention. It deploys as one convolution.",
)
FORMS["conv-window"] = Form(
    XVolutionConfig(attention=GatedDepthwise(gate="one")),
    "A convolution and a window over its outputs, the same for all images: gated_depthwise without its query.",
)
