"""Operators that keep the convolution in whose place they stand, and the norm that follows it."""

import pytest
import torch
from torch import nn

from tests.core.networks import SmallNet, randomize
from tests.operators.checks import runs_everywhere
from xvolution import OperatorConfig, convert, export, reparameterize
from xvolution.conversion.register import OPERATORS

KEEPING = [name for name, operator in OPERATORS.items() if operator.from_conv is not None]
ONE = "layer1.conv1"


def test_the_rivals_are_there():
    assert {"se", "eca", "gc", "ca", "odconv"} <= set(KEEPING)


@pytest.mark.parametrize("name", KEEPING)
def test_the_convolution_and_its_norm_are_kept(name):
    network = randomize(SmallNet()).eval()
    operator = convert(network, name, names=(ONE,)).layer1.conv1
    assert torch.equal(operator.conv.weight, network.layer1.conv1.weight)
    assert torch.equal(operator.conv_norm.running_var, network.layer1.norm1.running_var)


@pytest.mark.parametrize("name", KEEPING)
def test_checkpoints_of_the_unconverted_network_load(name):
    torch.manual_seed(0)
    trained = randomize(SmallNet())
    converted = convert(SmallNet(), name, names=(ONE,))
    weights = {key.replace(f"{ONE}.", f"{ONE}.conv."): tensor for key, tensor in trained.state_dict().items()}
    loaded = converted.load_state_dict(weights, strict=False)
    assert not loaded.unexpected_keys
    assert all(key.startswith(f"{ONE}.") for key in loaded.missing_keys)
    assert not [key for key in loaded.missing_keys if key.startswith((f"{ONE}.conv.", f"{ONE}.conv_norm."))]
    assert torch.equal(converted.layer1.conv1.conv_norm.running_mean, trained.layer1.norm1.running_mean)


@pytest.mark.parametrize("name", KEEPING)
def test_norms_fold_as_those_of_the_plain_network_do(name):
    torch.manual_seed(0)
    converted = randomize(convert(SmallNet(), name)).eval()
    x = torch.randn(2, 3, 16, 16)
    folded = reparameterize(converted, x, fold_norms=True)
    left = [key for key, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    # The norm of ODConv follows a product with weights of the outputs, which no convolution takes in.
    assert all(name == "odconv" and key.endswith("conv_norm") for key in left)
    torch.testing.assert_close(folded(x), converted(x))


@pytest.mark.parametrize("name", KEEPING)
def test_a_frozen_norm_stays_frozen_and_new_parts_train(name):
    operator = OPERATORS[name].from_conv(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8).eval())
    assert operator.training
    assert not operator.conv_norm.training
    new = [part for key, part in operator.named_children() if key not in ("conv", "conv_norm")]
    assert new
    assert all(part.training for part in new)


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("geometry", [(3, 2, 1), (1, 1, 0)], ids=["3x3", "1x1"])
def test_the_written_file_takes_batches_and_images_of_other_sizes(name, geometry, tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    operator = randomize(OPERATORS[name].build(8, 12, *geometry)).eval()
    report = export(operator, tmp_path / "operator.onnx", torch.randn(2, 8, 32, 32))
    assert report.dynamic == "batch and image size"
    assert report.relative_error < 1e-4


@pytest.mark.parametrize("name", KEEPING)
def test_it_runs_everywhere(name):
    torch.manual_seed(0)
    runs_everywhere(randomize(OPERATORS[name].build(8, 12, 3, padding=1)), torch.randn(2, 8, 6, 6))


@pytest.mark.parametrize("name", KEEPING)
def test_what_is_no_convolution_of_images_is_refused(name):
    with pytest.raises(ValueError, match=r"replaces an nn.Conv2d, not a Conv3d"):
        OPERATORS[name].from_conv(nn.Conv3d(4, 4, 3))


@pytest.mark.parametrize("name", KEEPING)
def test_another_kernel_size_has_new_weights_and_the_norm(name):
    operator = convert(SmallNet(), OperatorConfig(operator=name, kernel_size=5), names=(ONE,)).layer1.conv1
    assert operator.conv.kernel_size == (5, 5)
    assert isinstance(operator.conv_norm, nn.BatchNorm2d)
