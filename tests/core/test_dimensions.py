"""Networks for signals and videos: the four steps from conversion to what is written."""

import pytest
import torch
from torch import nn

from tests.core.networks import randomize
from xvolution import XVolution1d, XVolution2d, XVolution3d, XVolutionConfig, collapse, convert, export, reparameterize
from xvolution.attention.deployed import DeployedOperator


class SignalBlock(nn.Module):
    """Residual block of a network for electrocardiograms."""

    def __init__(self, channels, out_channels, stride):
        super().__init__()
        self.conv1 = nn.Conv1d(channels, out_channels, 7, stride, 3, bias=False)
        self.norm1 = nn.BatchNorm1d(out_channels)
        self.conv2 = nn.Conv1d(out_channels, out_channels, 7, padding=3, bias=False)
        self.norm2 = nn.BatchNorm1d(out_channels)
        self.shortcut = nn.Conv1d(channels, out_channels, 1, stride)

    def forward(self, x):
        return (self.shortcut(x) + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()


class SignalNet(nn.Module):
    """A small ResNet for signals of two leads."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(2, 8, 15, 2, 7)
        self.layer1 = SignalBlock(8, 8, 1)
        self.layer2 = SignalBlock(8, 16, 2)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.layer2(self.layer1(self.stem(x).relu())).mean(2))


def walk(model, x, kind, layout="single"):
    """Convert, train one step, re-parameterize; the deployed model."""
    model = randomize(model).eval()
    converted = convert(model, XVolutionConfig(), example_inputs=x)
    operators = [module for module in converted.modules() if isinstance(module, kind)]
    assert operators
    with torch.no_grad():
        assert torch.equal(converted(x), model(x))
    converted.train()(x).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for operator in operators for p in operator.parameters())
    torch.manual_seed(1)
    for operator in operators:
        nn.init.normal_(operator.attention_norm.weight)
    return converted.eval(), reparameterize(converted, x, layout=layout)


@pytest.mark.parametrize("layout", ["single", "split"])
def test_a_network_for_signals(layout, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 128)
    converted, deployed = walk(SignalNet(), x, XVolution1d, layout)
    assert not any(isinstance(m, nn.BatchNorm1d) for m in deployed.modules())
    torch.testing.assert_close(deployed(x), converted(x), rtol=1e-4, atol=1e-5)
    report = export(deployed, tmp_path / "signal.onnx", x)
    assert report.dynamic == "batch and image size"
    static, figures = collapse(converted, [torch.randn(8, 2, 128)])
    assert type(static.layer1.conv1) is nn.Conv1d
    assert all(0 <= error < 1 for error in figures.layers.values())


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18"])
def test_networks_for_videos(name):
    video = pytest.importorskip("torchvision").models.video
    torch.manual_seed(0)
    x = torch.randn(1, 3, 4, 32, 32)
    converted, deployed = walk(getattr(video, name)(num_classes=5), torch.cat([x, x.flip(2)]), XVolution3d, "split")
    assert sum(isinstance(module, DeployedOperator) for module in deployed.modules()) >= 16
    torch.testing.assert_close(deployed(x), converted(x), rtol=1e-3, atol=1e-4)


def test_a_convolution_over_channels_is_left_alone():
    class ChannelAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
            self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
            self.channels = nn.Conv1d(1, 1, 3, padding=1)

        def forward(self, x):
            y = self.conv2(self.conv1(x))
            return y * self.channels(y.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(3).sigmoid()

    converted = convert(ChannelAttention())
    assert type(converted.channels) is nn.Conv1d
    assert type(converted.conv2) is XVolution2d
