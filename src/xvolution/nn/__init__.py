"""Modules of a network in training: the operator and its attention branches."""

from xvolution.nn.global_attention import GlobalAttention2d
from xvolution.nn.linear_attention import LinearAttention2d
from xvolution.nn.pixel_shift import PixelShiftAttention2d
from xvolution.nn.xvolution import XVolution2d

__all__ = ["GlobalAttention2d", "LinearAttention2d", "PixelShiftAttention2d", "XVolution2d"]
