"""Modules of a network in training: the operator and its attention branches, for signals, images and videos."""

from xvolution.nn.global_attention import GlobalAttention, GlobalAttention1d, GlobalAttention2d, GlobalAttention3d
from xvolution.nn.image_attention import ImageAttention, ImageAttention1d, ImageAttention2d, ImageAttention3d
from xvolution.nn.linear_attention import LinearAttention, LinearAttention1d, LinearAttention2d, LinearAttention3d
from xvolution.nn.pixel_shift import (
    PixelShiftAttention,
    PixelShiftAttention1d,
    PixelShiftAttention2d,
    PixelShiftAttention3d,
)
from xvolution.nn.shared_attention import (
    SharedValueAttention,
    SharedValueAttention1d,
    SharedValueAttention2d,
    SharedValueAttention3d,
)
from xvolution.nn.xvolution import XVOLUTIONS, XVolution, XVolution1d, XVolution2d, XVolution3d

__all__ = [
    "XVOLUTIONS",
    "GlobalAttention",
    "GlobalAttention1d",
    "GlobalAttention2d",
    "GlobalAttention3d",
    "ImageAttention",
    "ImageAttention1d",
    "ImageAttention2d",
    "ImageAttention3d",
    "LinearAttention",
    "LinearAttention1d",
    "LinearAttention2d",
    "LinearAttention3d",
    "PixelShiftAttention",
    "PixelShiftAttention1d",
    "PixelShiftAttention2d",
    "PixelShiftAttention3d",
    "SharedValueAttention",
    "SharedValueAttention1d",
    "SharedValueAttention2d",
    "SharedValueAttention3d",
    "XVolution",
    "XVolution1d",
    "XVolution2d",
    "XVolution3d",
]
