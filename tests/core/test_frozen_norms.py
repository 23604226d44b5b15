"""Batch norms whose weights and statistics are buffers: recognized by what they compute, whatever their class is called."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xvolution import XVolution2d, convert, reparameterize
from xvolution.conversion.pairing import is_pairable_norm
from xvolution.folding import affine_of, is_foldable, is_frozen_batch_norm


class Buffers(nn.Module):
    """What all of them hold: random statistics and weights."""

    def __init__(self, channels=6):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, 0.5 + torch.rand(channels))

    def affine(self, x, eps):
        shape = (1, -1) + (1,) * (x.dim() - 2)
        scale = (self.weight * (self.running_var + eps).rsqrt()).reshape(shape)
        return x * scale + (self.bias.reshape(shape) - self.running_mean.reshape(shape) * scale)


class Detectron(Buffers):
    """detectron2's: an ``eps``, and ``F.batch_norm`` where no gradient is asked for."""

    eps = 1e-3

    def forward(self, x):
        if x.requires_grad:
            return self.affine(x, self.eps)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class Detr(Buffers):
    """DETR's: for maps alone, and with an epsilon that is no attribute."""

    def forward(self, x):
        w, b, rv, rm = (
            getattr(self, n).reshape(1, -1, 1, 1) for n in ("weight", "bias", "running_var", "running_mean")
        )
        scale = w * (rv + 1e-5).rsqrt()
        return x * scale + (b - rm * scale)


class FrozenBatchNorm2d(Buffers):
    """The name of a frozen batch norm, and an activation behind it."""

    eps = 1e-5

    def forward(self, x):
        return self.affine(x, self.eps).relu()


class Deviation(Buffers):
    """The statistics are standard deviations."""

    def forward(self, x):
        shape = (1, -1, 1, 1)
        return (x - self.running_mean.reshape(shape)) / self.running_var.reshape(shape) * self.weight.reshape(shape)


class OtherEpsilon(Buffers):
    """An epsilon that nobody is told of."""

    def forward(self, x):
        return self.affine(x, 1e-3)


class Pooled(Buffers):
    """Another shape."""

    def forward(self, x):
        return self.affine(x, 1e-5).mean((2, 3), keepdim=True)


def of_torchvision(eps):
    norm = pytest.importorskip("torchvision").ops.FrozenBatchNorm2d(6, eps=eps)
    norm.load_state_dict(Buffers().state_dict())
    return norm


FROZEN = {
    "torchvision": lambda: of_torchvision(1e-5),
    "torchvision, eps": lambda: of_torchvision(1e-2),
    "detectron2": Detectron,
    "detr": Detr,
}


@pytest.mark.parametrize("name", FROZEN)
def test_they_fold_exactly(name):
    torch.manual_seed(0)
    norm = FROZEN[name]().double()
    assert is_frozen_batch_norm(norm)
    assert is_foldable(norm)
    assert is_pairable_norm(norm)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    scale, shift = (weight.reshape(-1, 1, 1) for weight in affine_of(norm, 6, x))
    torch.testing.assert_close(scale * x + shift, norm(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FROZEN)
def test_they_move_and_deploy_exactly(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, padding=1), FROZEN[name](), nn.ReLU()).double().eval()
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    converted = convert(model, example_inputs=x)
    assert type(converted[1].conv_norm) is type(model[2])
    assert torch.equal(converted(x), model(x))
    nn.init.normal_(converted[1].attention_norm.weight)
    for layout in ("single", "split"):
        deployed = reparameterize(converted, x, layout=layout)
        assert not any(type(module) is type(model[2]) for module in deployed.modules())
        torch.testing.assert_close(deployed(x), converted(x), rtol=1e-12, atol=1e-12)


def with_activation():
    return pytest.importorskip("timm").layers.norm_act.FrozenBatchNormAct2d(6)


@pytest.mark.parametrize("kind", [FrozenBatchNorm2d, Deviation, OtherEpsilon, Pooled, with_activation])
def test_another_formula_is_not_folded(kind):
    torch.manual_seed(0)
    norm = kind().double()
    for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        norm._buffers[name].fill_(value)  # fresh: some formulas differ by nothing here
    assert not is_frozen_batch_norm(norm)
    assert not is_foldable(norm)
    assert not is_pairable_norm(norm)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, padding=1), norm).double().eval()
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    converted = convert(model, example_inputs=x)
    assert isinstance(converted[1], XVolution2d)
    assert type(converted[2]) is type(norm)
    torch.testing.assert_close(reparameterize(converted, fold_norms=True)(x), model(x), rtol=1e-12, atol=1e-12)


def test_recognizing_one_changes_nothing():
    norm = Detectron()
    seen, before = [], {name: value.clone() for name, value in norm.state_dict().items()}
    norm.register_forward_hook(lambda *_: seen.append(1))
    state = torch.random.get_rng_state()
    assert is_frozen_batch_norm(norm)
    assert not seen
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert norm.weight.dtype == torch.float32


def test_without_values_the_buffers_decide():
    assert is_frozen_batch_norm(Detectron().to("meta"))
    assert not is_frozen_batch_norm(nn.BatchNorm2d(6).to("meta"))
    assert not is_frozen_batch_norm(nn.BatchNorm2d(6, affine=False))
