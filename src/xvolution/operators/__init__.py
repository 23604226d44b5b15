"""Other operators that replace a convolution, one file each, by name."""

from xvolution.operators import controls as controls
from xvolution.operators import conv as conv
from xvolution.operators.acmix import ACmix2d
from xvolution.operators.attention_attention import AttentionAttention2d
from xvolution.operators.conv_context import ConvContext2d
from xvolution.operators.coordinate_attention import CoordinateAttention2d
from xvolution.operators.efficient_channel_attention import EfficientChannelAttention2d
from xvolution.operators.global_attention import global_attention
from xvolution.operators.global_context import GlobalContext2d
from xvolution.operators.hpconv import HPConv2d
from xvolution.operators.involution import Involution2d
from xvolution.operators.lesa import LESA2d
from xvolution.operators.local_attention import LocalAttention2d
from xvolution.operators.mobilevit import MobileViT2d
from xvolution.operators.odconv import ODConv2d
from xvolution.operators.squeeze_excitation import SqueezeExcitation2d

__all__ = [
    "ACmix2d",
    "AttentionAttention2d",
    "ConvContext2d",
    "CoordinateAttention2d",
    "EfficientChannelAttention2d",
    "GlobalContext2d",
    "HPConv2d",
    "Involution2d",
    "LESA2d",
    "LocalAttention2d",
    "MobileViT2d",
    "ODConv2d",
    "SqueezeExcitation2d",
    "global_attention",
]
