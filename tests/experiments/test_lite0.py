"""The weights of EfficientNet-Lite0 under timm's names."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from experiments.lite0 import main, renamed


def test_weights_of_another_network_are_refused() -> None:
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    foreign = {f"layer.{index}": value for index, value in enumerate(own.values())}
    assert list(renamed(foreign)) == list(own)
    del foreign["layer.0"]
    with pytest.raises(ValueError, match="EfficientNet-Lite0"):
        renamed(foreign)


def test_the_file_is_one_that_weights_takes(tmp_path: Path) -> None:
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    foreign = {f"layer.{index}": value for index, value in enumerate(own.values())}
    foreign["layer.0"] = foreign["layer.0"].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)  # as in the package
    torch.save(foreign, tmp_path / "foreign.pth")
    main([str(tmp_path / "foreign.pth"), str(tmp_path / "made" / "own.safetensors")])
    read = load_file(tmp_path / "made" / "own.safetensors")
    assert read.keys() == own.keys()
    assert all(torch.equal(read[key], own[key]) for key in own)


def test_lite0_computes_what_the_networks_own_package_computes() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    network = package.EfficientNet.from_name("efficientnet-lite0").eval()
    ours = timm.create_model("tf_efficientnet_lite0").eval()
    ours.load_state_dict(renamed(network.state_dict()))
    for size in (128, 224):
        x = torch.randn(1, 3, size, size)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), network(x))
