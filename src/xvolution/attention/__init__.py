"""The attention branches, one file each: a frozen configuration with the options, and the module that it builds.

A configuration, or its name, is what ``XVolution2d(attention=...)`` takes: ``PixelShift(window=5)``, ``"linear"``.
"""

from xvolution.attention.base import ATTENTION, AttentionBranch, AttentionConfig, attention_config, register
from xvolution.attention.channel_gate import ChannelGate, ChannelGateAttention
from xvolution.attention.gated_depthwise import GatedDepthwise, GatedDepthwiseAttention
from xvolution.attention.global_attention import Global, GlobalAttention
from xvolution.attention.linear import Linear, LinearAttention
from xvolution.attention.pixel_shift import PixelShift, PixelShiftAttention
from xvolution.attention.pixel_shift_dot import PixelShiftDot, PixelShiftDotAttention

#: The branch of an operator of which nothing was said.
DEFAULT_ATTENTION = PixelShift()

__all__ = [
    "ATTENTION",
    "DEFAULT_ATTENTION",
    "AttentionBranch",
    "AttentionConfig",
    "ChannelGate",
    "ChannelGateAttention",
    "GatedDepthwise",
    "GatedDepthwiseAttention",
    "Global",
    "GlobalAttention",
    "Linear",
    "LinearAttention",
    "PixelShift",
    "PixelShiftAttention",
    "PixelShiftDot",
    "PixelShiftDotAttention",
    "attention_config",
    "register",
]
