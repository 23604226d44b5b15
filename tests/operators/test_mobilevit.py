"""The MobileViT block against its formula, and against timm's."""

import math

import pytest
import torch
import torch.nn.functional as F
from timm.models.mobilevit import MobileVitBlock

from tests.core.networks import randomize
from xvolution import export
from xvolution.operators import MobileViT2d
from xvolution.operators.mobilevit import fold, unfold


def normalized(x, parts, **geometry):
    """Convolution, batch norm with its stored statistics, SiLU."""
    conv, norm = parts[0], parts[1]
    y = F.conv2d(x, conv.weight, **geometry)
    return F.silu(F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps))


def layer_norm(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def transformer(tokens, layer):
    """tokens (T, dim): one set of pixels that attend to each other."""
    dim = tokens.shape[1]
    q, k, v = layer.qkv(layer_norm(tokens, layer.attention_norm)).split(dim, 1)
    side = dim // layer.heads
    heads = []
    for start in range(0, dim, side):
        part = slice(start, start + side)
        weights = (q[:, part] @ k[:, part].T / math.sqrt(side)).softmax(1)
        heads.append(weights @ v[:, part])
    tokens = tokens + layer.out(torch.cat(heads, 1))
    return tokens + layer.mlp[2](F.silu(layer.mlp[0](layer_norm(tokens, layer.mlp_norm))))


def reference(x, block, stride):
    """The block with a loop over images and over positions in a patch; 3x3 kernel, padding 1, whole patches."""
    local = normalized(x, block.local, stride=stride, padding=1)
    z = F.conv2d(local, block.reduce.weight)
    y, p = torch.zeros_like(z), block.patch_size
    for image in range(len(z)):
        for row in range(p):
            for column in range(p):
                pixels = z[image, :, row::p, column::p]
                tokens = pixels.flatten(1).T
                for layer in block.layers:
                    tokens = transformer(tokens, layer)
                y[image, :, row::p, column::p] = layer_norm(tokens, block.norm).T.reshape(pixels.shape)
    shortcut = x if stride == 1 else local
    return normalized(torch.cat([shortcut, normalized(y, block.project)], 1), block.fuse, padding=1)


@pytest.mark.parametrize("size", [(12, 12), (9, 7)])
def test_the_block_runs_in_onnx_runtime(tmp_path, size):
    torch.manual_seed(0)
    block = randomize(MobileViT2d(4, 8, 3, padding=1, num_heads=2)).eval()
    report = export(block, tmp_path / "block.onnx", torch.randn(2, 4, *size))
    assert report.relative_error < 1e-4


@pytest.mark.parametrize(("stride", "outputs", "patch"), [(1, 8, 2), (1, 12, 4), (2, 12, 2)])
def test_module_is_the_reference(stride, outputs, patch):
    torch.manual_seed(0)
    block = MobileViT2d(8, outputs, 3, stride, 1, dim=12, num_heads=3, patch_size=patch, dtype=torch.float64).eval()
    randomize(block)
    x = torch.randn(2, 8, 16, 8, dtype=torch.float64, requires_grad=True)
    inputs = (x, *block.parameters())
    y, expected = block(x), reference(x, block, stride)
    torch.testing.assert_close(y, expected)
    direction = torch.randn_like(y)
    gradients = (torch.autograd.grad((out * direction).sum(), inputs) for out in (y, expected))
    for gradient, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, wanted)


def timm_block(block, channels, dim):
    """timm's block with the weights of ours."""
    other = MobileVitBlock(channels, transformer_dim=dim, patch_size=2, num_heads=4, dtype=torch.float64)
    with torch.no_grad():
        for tensor, ours in zip(_in_our_order(other), block.state_dict().values(), strict=True):
            tensor.copy_(ours)
    return other.eval()


def _in_our_order(other):
    yield from _tensors(other.conv_kxk.conv, other.conv_kxk.bn, other.conv_1x1)
    for layer in other.transformer:
        yield from _tensors(layer.norm1, layer.attn.qkv, layer.attn.proj, layer.norm2, layer.mlp.fc1, layer.mlp.fc2)
    yield from _tensors(other.norm, other.conv_proj.conv, other.conv_proj.bn)
    yield from _tensors(other.conv_fusion.conv, other.conv_fusion.bn)


def _tensors(*modules):
    for module in modules:
        yield from module.state_dict().values()


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_outputs_and_parameters_are_those_of_timm(size):
    """timm's block takes the official weights; a map of (7, 10) is resized."""
    torch.manual_seed(0)
    block = MobileViT2d(16, 16, 3, padding=1, dim=24, dtype=torch.float64).eval()
    randomize(block)
    other = timm_block(block, 16, 24)
    # timm activates the perceptron as the layers that it is built with say; the official code takes SiLU.
    for layer in other.transformer:
        layer.mlp.act = torch.nn.SiLU()
    for name in ("conv_kxk", "conv_proj", "conv_fusion"):
        getattr(other, name).bn.act = torch.nn.SiLU()
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    torch.testing.assert_close(block(x), other(x))
    assert sum(p.numel() for p in block.parameters()) == sum(p.numel() for p in other.parameters())


def test_parameters_by_formula():
    """Of MobileViT-S's first block: 96 channels, 144 in the transformer, 2 layers, a perceptron twice as wide."""
    c, d, depth = 96, 144, 2
    block = MobileViT2d(c, c, 3, padding=1, dim=d, depth=depth)
    attention = 3 * d * d + 3 * d + d * d + d
    perceptron = 2 * d * d + 2 * d + 2 * d * d + d
    convolutions = (9 * c * c + 2 * c) + c * d + (d * c + 2 * c) + (9 * 2 * c * c + 2 * c)
    expected = convolutions + depth * (attention + perceptron + 2 * 2 * d) + 2 * d
    assert sum(p.numel() for p in block.parameters()) == expected


def test_pixels_attend_to_the_same_position_of_other_patches():
    torch.manual_seed(0)
    block = MobileViT2d(8, 8, 1, patch_size=4, dtype=torch.float64).eval()
    x = torch.randn(1, 8, 12, 16, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x)[..., 5, 6].sum(), x)
    seen = gradient.abs().sum((0, 1)) > 0
    expected = torch.zeros(12, 16, dtype=torch.bool)
    expected[1::4, 2::4] = True
    assert torch.equal(seen, expected)


def test_folding_undoes_unfolding():
    x = torch.randn(2, 3, 6, 9)
    assert unfold(x, 3).shape == (2, 9, 6, 3)
    assert torch.equal(fold(unfold(x, 3), (6, 9), 3), x)
    assert torch.equal(unfold(x, 3)[:, 4], x[..., 1::3, 1::3].flatten(2).mT)


@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 3, "stride": 2, "padding": 0},
        {"kernel_size": (1, 5), "padding": (1, 2), "dilation": 2, "groups": 2},
        {"kernel_size": 3, "padding": "same", "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": "valid"},
    ],
)
def test_output_size_is_that_of_the_convolution(geometry):
    x = torch.randn(2, 4, 13, 11)
    assert MobileViT2d(4, 8, **geometry)(x).shape == torch.nn.Conv2d(4, 8, **geometry)(x).shape


def test_bad_input_is_a_sentence():
    with pytest.raises(ValueError, match="dim=10 does not divide into num_heads=4; choose dim a multiple of num_heads"):
        MobileViT2d(8, 10, 3)
    for option in ("dim", "depth", "num_heads", "patch_size", "mlp_ratio"):
        with pytest.raises(ValueError, match=f"{option} is 0; it must be positive"):
            MobileViT2d(8, 8, 3, **{option: 0})
