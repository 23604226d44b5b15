"""Libraries that fold norms into convolutions themselves: operators survive that, or refuse it in a sentence."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from tests.core.networks import randomize
from xvolution import ConversionError, XVolution2d, convert, reparameterize
from xvolution.conversion.pairing import without_norm


class Block(nn.Module):
    """A convolution, a norm and an activation under the names that YOLO's forks give them."""

    def __init__(self, channels_in, channels_out, **options):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, **options)
        self.bn = nn.BatchNorm2d(channels_out)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))

    def forward_fuse(self, x):
        return torch.relu(self.conv(x))


def assigned(conv, bn):
    """As ultralytics 8.4: new weights for the convolution that is there."""
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    return conv.requires_grad_(False)


def multiplied(conv, bn):
    """As ultralytics 8.3: new data by matrix products."""
    kernel = conv.weight.view(conv.out_channels, -1)
    scale = torch.diag(bn.weight.div(torch.sqrt(bn.eps + bn.running_var)))
    conv.weight.data = torch.mm(scale, kernel).view(conv.weight.shape)
    bias = torch.zeros(conv.out_channels, dtype=scale.dtype) if conv.bias is None else conv.bias
    shift = bn.bias - bn.weight.mul(bn.running_mean).div(torch.sqrt(bn.running_var + bn.eps))
    bias = torch.mm(scale, bias.reshape(-1, 1)).reshape(-1) + shift
    if conv.bias is None:
        conv.register_parameter("bias", nn.Parameter(bias))
    else:
        conv.bias.data = bias
    return conv.requires_grad_(False)


def parametrized(conv, bn):
    """As mmcv: new parameters, with the factor on the right."""
    bias = conv.bias if conv.bias is not None else torch.zeros_like(bn.running_mean)
    factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    conv.weight = nn.Parameter(conv.weight * factor.reshape([conv.out_channels, 1, 1, 1]))
    conv.bias = nn.Parameter((bias - bn.running_mean) * factor + bn.bias)
    return conv


def rebuilt(conv, bn):
    """As yolov5: a new convolution that weights are copied into."""
    fused = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
    )
    fused = fused.requires_grad_(False).to(conv.weight.device).to(conv.weight.dtype)
    scale = torch.diag(bn.weight.div(torch.sqrt(bn.eps + bn.running_var)))
    fused.weight.copy_(torch.mm(scale, conv.weight.clone().view(conv.out_channels, -1)).view(fused.weight.shape))
    bias = torch.zeros(conv.weight.size(0), dtype=scale.dtype) if conv.bias is None else conv.bias
    shift = bn.bias - bn.weight.mul(bn.running_mean).div(torch.sqrt(bn.running_var + bn.eps))
    fused.bias.copy_(torch.mm(scale, bias.reshape(-1, 1)).reshape(-1) + shift)
    return fused


IN_PLACE = [assigned, multiplied, parametrized, fuse_conv_bn_eval]


def fuse(network, fold):
    for block in network:
        if isinstance(block, Block):
            block.conv = fold(block.conv, block.bn)
            del block.bn
            block.forward = block.forward_fuse


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = Block(3, 4, bias=False), Block(4, 6, bias=False), Block(6, 6), nn.Conv2d(6, 2, 1)
    return randomize(nn.Sequential(*layers)).double().eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def form_of(network, deployed):
    """The converted network, with attention that has an effect and statistics of its own."""
    converted = randomize(convert(network)).eval()
    return reparameterize(converted, fold_norms=True) if deployed else converted


@pytest.mark.parametrize("deployed", [False, True], ids=["trained", "deployed"])
@pytest.mark.parametrize("fold", IN_PLACE)
def test_operators_survive_a_fold_into_the_convolution_that_is_there(fold, deployed, network, images):
    model = form_of(network, deployed)
    operators = [model[1].conv, model[2].conv]
    expected = model(images)
    with torch.no_grad():
        fuse(model, fold)
    torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)
    copies = fold is fuse_conv_bn_eval
    assert all(type(block.conv) is type(old) for block, old in zip(model[1:3], operators, strict=True))
    assert copies or [model[1].conv, model[2].conv] == operators


@pytest.mark.parametrize("fold", IN_PLACE)
def test_a_folded_network_is_deployed_afterwards(fold, network, images):
    model = form_of(network, deployed=False)
    expected = model(images)
    fuse(model, fold)
    deployed = reparameterize(copy.deepcopy(model), images)
    torch.testing.assert_close(deployed(images), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("deployed", [False, True], ids=["trained", "deployed"])
def test_a_new_convolution_of_an_operators_weights_is_refused_and_nothing_changes(deployed, network, images):
    model = form_of(network, deployed)
    expected = model(images)
    with (
        torch.no_grad(),
        pytest.raises(ConversionError, match=r"1\.conv\.weight.*reparameterize\(model, fold_norms=True"),
    ):
        fuse(model, rebuilt)
    torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fold", [*IN_PLACE, rebuilt])
def test_what_is_left_of_a_norm_folds_into_a_plain_convolution_exactly(fold):
    conv = nn.Conv2d(3, 5, 3).double().eval()
    left = without_norm(randomize(nn.BatchNorm2d(5)).double().eval())
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = conv(x)
        assert torch.equal(fold(conv, left)(x), expected)


def test_a_norm_that_did_not_move_is_no_identity(network):
    operator = convert(network)[1].conv
    norm = randomize(nn.BatchNorm2d(6)).double().eval()
    for fold in (assigned, parametrized, multiplied):
        with pytest.raises(ConversionError, match=r"reads 1\.conv\.weight"):
            fold(operator, norm)
    with pytest.raises(ConversionError, match=r"reads 1\.conv\.bias"):
        operator.bias = nn.Parameter(torch.ones(6))


@pytest.mark.parametrize(
    "changes",
    [
        lambda w: w.abs(),
        lambda w: w.round(),
        lambda w: w.clamp(min=0),
        lambda w: w.flip(0),
        lambda w: w.transpose(0, 1),
        lambda w: w * w,
        lambda w: w + 1,
        lambda w: torch.zeros(6, 4, 3, 3).copy_(w),
        lambda w: torch.add(w, 0, out=torch.zeros(6, 4, 3, 3)),
        lambda w: torch.nn.init.zeros_(w),
        lambda w: w.tolist(),
        lambda w: w.mean(),
        lambda w: [*w],
    ],
)
def test_a_weight_has_no_values(changes):
    operator = XVolution2d(4, 6, 3)
    with pytest.raises(ConversionError, match=r"reads a XVolution2d\.weight"):
        changes(operator.weight)


@pytest.mark.parametrize(
    "keeps",
    [
        lambda w: w.view(6, -1),
        lambda w: w.clone().detach().data,
        lambda w: torch.ones(6, 1, 1, 1) * w / 1,
        lambda w: 0 + w - torch.zeros(()),
        lambda w: torch.eye(6).mm(w.flatten(1)).reshape(w.shape),
        lambda w: w.double(),
        lambda w: nn.Parameter(w),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_a_weight_with_the_same_values_is_the_same(keeps, inference):
    weight = XVolution2d(4, 6, 3).weight
    with torch.inference_mode(inference):
        kept = keeps(weight)
    assert (type(kept), kept.name) == (type(weight), weight.name)


def test_writing_to_what_is_left_of_a_norm_is_an_error(network):
    left = convert(network)[1].bn
    for write in (
        lambda: nn.init.zeros_(left.weight),
        lambda: left.bias.fill_(1),
        lambda: left.weight.data.zero_(),
        lambda: left.running_mean.__setitem__(0, 1.0),
        lambda: left.weight.mul_(2),
        lambda: setattr(left.weight, "data", torch.zeros(6)),
    ):
        with pytest.raises(ConversionError, match=r"write to the operator's conv_norm"):
            write()
    with pytest.raises(KeyError, match="already exists"):
        left.weight = nn.Parameter(torch.zeros(6))
    assert torch.equal(left.weight + left.bias, torch.ones(6, dtype=torch.float64))


def test_what_is_left_of_a_norm_follows_the_network(network):
    left = convert(network)[1].bn
    assert not left.state_dict()
    assert left.weight.dtype == torch.float64
    assert left.half().running_var.dtype == torch.float16
    assert left.to("meta").bias.is_meta
