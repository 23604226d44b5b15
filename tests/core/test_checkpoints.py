"""Checkpoints from before a conversion load into the converted network, into any part of it, and through wrappers."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, prune, weight_norm

from tests.core.networks import Residual, SmallNet, randomize
from xvolution import XVolution2d, convert, load_unconverted


class Wrapped(nn.Module):
    """Holds a module as DistributedDataParallel does."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def features():
    layers = []
    for channels in (3, 8, 8):
        layers += [nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers)


class Backwards(nn.Module):
    """Registers its norm before its convolution."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.norm(self.conv(x))


class Detector(nn.Module):
    """A backbone with a neck."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.backbone = nn.Sequential(Residual(8), Backwards(), Residual(8))
        self.features = features()

    def forward(self, x):
        return self.backbone(self.stem(x)) + self.features(x)[..., 1:-1, 1:-1]


#: Parts that hold both the operators and the places of their norms; each is taken of the plain and of the converted network.
PARTS = {
    "all of it": lambda net: net,
    "a layer": lambda net: net.backbone[0],
    "norm before convolution": lambda net: net.backbone[1],
    "a backbone": lambda net: net.backbone,
    "a slice": lambda net: net.features[3:6],
    "a new container": lambda net: nn.ModuleDict(
        {"body": nn.ModuleList(net.features.children()), "top": net.backbone[2]}
    ),
    "another order": lambda net: nn.Sequential(*reversed(list(net.features.children()))),
}
HOLDERS = {
    "itself": lambda part: part,
    "a copy": copy.deepcopy,
    "a pickle": lambda part: pickle.loads(pickle.dumps(part)),
    "compiled": torch.compile,
    "wrapped": Wrapped,
    "wrapped and compiled": lambda part: torch.compile(Wrapped(copy.deepcopy(part))),
}


def networks():
    torch.manual_seed(0)
    return randomize(Detector(), 1).eval(), randomize(
        convert(Detector(), filter_fn=lambda _, name: name != "stem"), 2
    ).eval()


def norms_of(model):
    """All batch norms but those of the attention, in the order of their convolutions."""
    return [m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and "attention" not in n]


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_of_the_plain_part_loads_into_the_converted_part(part, holder):
    plain, converted = (PARTS[part](net) for net in networks())
    held, wrapped = HOLDERS[holder](converted), HOLDERS[holder](plain)
    checkpoint = wrapped.state_dict()
    missing, unexpected = held.load_state_dict(copy.deepcopy(checkpoint), strict=False)
    assert not unexpected
    assert missing
    assert all(".attention" in name for name in missing)
    found, given = norms_of(held), norms_of(wrapped)
    assert len(found) == len(given) > 0
    states = [{name: value.sum().item() for name, value in norm.state_dict().items()} for norm in found]
    assert sorted(map(str, states)) == sorted(
        str({name: value.sum().item() for name, value in norm.state_dict().items()}) for norm in given
    )
    twin = HOLDERS[holder](PARTS[part](networks()[1]))
    for names_of in (plain, wrapped):
        load_unconverted(twin, names_of.state_dict())
        if part != "a new container":
            twin.state_dict()
        assert all(
            torch.equal(a, b)
            for (n, a), (_, b) in zip(twin.state_dict().items(), held.state_dict().items(), strict=True)
            if "attention" not in n
        )


def test_outputs_are_those_of_the_checkpoint():
    plain, _ = networks()
    converted = convert(Detector(), filter_fn=lambda _, name: name != "stem").eval()
    x = torch.randn(2, 3, 12, 12)
    load_unconverted(converted.backbone, plain.backbone.state_dict())
    load_unconverted(converted.stem, plain.stem.state_dict())
    load_unconverted(converted.features, plain.features.state_dict())
    assert torch.equal(converted(x), plain(x))


def test_checkpoints_of_the_converted_network_load_strictly():
    _, converted = networks()
    for part in PARTS.values():
        twin = part(networks()[1])
        for parameter in twin.parameters():
            nn.init.normal_(parameter)
        twin.load_state_dict(part(converted).state_dict())
        assert all(
            torch.equal(a, b)
            for a, b in zip(twin.state_dict().values(), part(converted).state_dict().values(), strict=True)
        )


def test_what_is_missing_is_told_under_one_name():
    plain, converted = networks()
    checkpoint = plain.state_dict()
    del checkpoint["backbone.0.norm1.weight"], checkpoint["features.4.bias"], checkpoint["backbone.0.conv2.weight"]
    missing, unexpected = converted.load_state_dict(checkpoint, strict=False)
    assert not unexpected
    assert {name for name in missing if ".attention" not in name} == {
        "backbone.0.norm1.weight",
        "features.4.bias",
        "backbone.0.conv2.conv.weight",
    }
    for norm in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        checkpoint.pop(f"backbone.0.norm1.{norm}", None)
    missing, _ = converted.load_state_dict(checkpoint, strict=False)
    assert "backbone.0.conv1.conv_norm.weight" in missing
    with pytest.raises(
        ValueError, match=r"the checkpoint lacks backbone\.0\..* and \d more; give a checkpoint of the network before"
    ):
        load_unconverted(converted, checkpoint)
    with pytest.raises(ValueError, match=r"the checkpoint has head\.weight too; give a checkpoint"):
        load_unconverted(converted, {**plain.state_dict(), "head.weight": torch.ones(1)})
    with pytest.raises(RuntimeError, match=r"size mismatch for backbone\.0\.norm1\.weight"):
        load_unconverted(converted, {**plain.state_dict(), "backbone.0.norm1.weight": torch.ones(3)})


def test_checkpoints_are_assigned_to_networks_without_values():
    plain, _ = networks()
    with torch.device("meta"):
        converted = convert(Detector(), filter_fn=lambda _, name: name != "stem")
    missing, unexpected = converted.load_state_dict(plain.state_dict(), strict=False, assign=True)
    assert not unexpected
    assert all(".attention" in name for name in missing)
    assert not any(norm.weight.is_meta or norm.running_var.is_meta for norm in norms_of(converted))


@pytest.mark.parametrize(
    "computes_weights",
    [
        lambda conv: weight_norm(conv),
        lambda conv: parametrizations.weight_norm(conv),
        lambda conv: parametrizations.spectral_norm(conv),
        lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weights_that_are_computed_from_others_load(computes_weights):
    def build():
        net = SmallNet()
        computes_weights(net.layer1.conv1)
        return net

    plain, converted = randomize(build()).eval(), convert(build()).eval()
    assert isinstance(converted.layer1.conv1, XVolution2d)
    load_unconverted(converted, plain.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(converted(x), plain(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_older_names_of_computed_weights_load():
    def build(computes_weights):
        net = SmallNet()
        computes_weights(net.layer1.conv1)
        return net

    plain = randomize(build(weight_norm)).eval()
    converted = convert(build(parametrizations.weight_norm)).eval()
    missing, unexpected = converted.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(".attention" in name for name in missing)
    load_unconverted(converted, plain.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(converted(x), plain(x), atol=1e-6)


class Aliased(nn.Module):
    """Registers its modules under two names each."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3), Residual(8)
        self.blocks = nn.ModuleList([self.stem, self.body])
        self.convs = nn.ModuleList([self.body.conv1, self.body.conv2])
        self.norms = nn.ModuleList([self.body.norm1, self.body.norm2])

    def forward(self, x):
        return self.body(self.stem(x))


def test_modules_under_two_names_load():
    plain, converted = randomize(Aliased(), 1).eval(), convert(Aliased()).eval()
    assert isinstance(converted.body.conv1.conv_norm, nn.BatchNorm2d)
    missing, unexpected = converted.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all(".attention" in name for name in missing)
    load_unconverted(converted, plain.state_dict())
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(converted(x), plain(x))
    twin = convert(Aliased()).eval()
    twin.load_state_dict(converted.state_dict())
    assert torch.equal(twin(x), plain(x))
    checkpoint = plain.state_dict()
    for name in ("body.norm1.weight", "norms.0.weight", "blocks.1.norm1.weight"):
        del checkpoint[name]
    with pytest.raises(ValueError, match=r"the checkpoint lacks .*norm1\.weight"):
        load_unconverted(converted, checkpoint)


def test_names_that_a_loader_drops_load():
    plain, converted = networks()
    found = {name: value for name, value in plain.state_dict().items() if name in converted.state_dict()}
    assert len(found) < len(plain.state_dict()) / 2
    load_unconverted(converted, plain.state_dict())
    assert torch.equal(converted.backbone[0].conv1.conv.weight, plain.backbone[0].conv1.weight)
    with pytest.raises(ValueError, match="the network is on the meta device"):
        load_unconverted(copy.deepcopy(converted).to("meta"), plain.state_dict())


class ReadTwice(nn.Module):
    """Norms of which one may move, behind control flow on sizes that torch.fx cannot read."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.moves, self.added, self.returned = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x):
        assert x.shape[1] == 3, "symbols of torch.fx are no truth values"
        if bool(x.shape[0] > 10):
            return x
        x = self.norms[0](self.moves(self.stem(x))).relu_()
        y = self.added(x)
        x = self.norms[1](y) + y[:, :, :1, :1]
        z = self.returned(x)
        return self.norms[2](z), z.flatten(1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("options", [{}, {"verify": False}, {"example_inputs": torch.randn(3, 3, 9, 20)}])
def test_norms_that_move_depend_on_no_device_and_no_inputs(device, options):
    options = {name: value.to(device) if name == "example_inputs" else value for name, value in options.items()}
    converted = convert(ReadTwice().eval().to(device), **options)
    names = ("moves", "added", "returned")
    moved = [name for name in names if isinstance(converted.get_submodule(name).conv_norm, nn.BatchNorm2d)]
    assert moved == ["moves"]


def test_distributed_wrappers(tmp_path):
    plain, converted = networks()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(converted.backbone)
        load_unconverted(wrapped, DistributedDataParallel(plain.backbone).state_dict())
        load_unconverted(wrapped, plain.backbone.state_dict())
    finally:
        torch.distributed.destroy_process_group()
    x = torch.randn(2, 8, 9, 9)
    assert torch.equal(plain.backbone[1].norm.weight, converted.backbone[1].conv.conv_norm.weight)
    assert converted.backbone(x).shape == plain.backbone(x).shape
