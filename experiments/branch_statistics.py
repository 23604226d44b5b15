"""What the parts of trained X-volutions amount to: what the window says, what the term over all pixels says, and their tails.

    python experiments/branch_statistics.py runs/operators/cells/xvolution/seed*/last.ckpt --data DATA \
        --output results/tiny-imagenet/branch-statistics.json

Of each operator with the Hadamard branch, over 512 images of the validation part:

- ``window_std``: standard deviation of the window's sum of keys within an image, mean over channels;
- ``mean_key_std``: that of the keys' means between images, without the weight ``g``;
- ``weight``: mean size of ``g``;
- ``branch_share``: variance of the attention branch over that of both branches added up, after their norms;
- ``context_share``: the part of the attention branch's variance that is the same at every pixel of an image;
- ``kurtosis``: of the products in front of ``W^v``, with the sigmoid, and as they would be without (3 is a normal distribution).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from record import write_record
from torch import Tensor

from xvolution import XVolution2d
from xvolution.training.checkpoint import load_model
from xvolution.training.data import open_data
from xvolution.training.data.dataset import evaluation_loader

IMAGES = 512


def kurtosis(x: Tensor) -> float:
    """Fourth standardized moment by channel of (N, A, H, W), mean over channels."""
    centred = x - x.mean((0, 2, 3), keepdim=True)
    return float((centred.pow(4).mean((0, 2, 3)) / centred.square().mean((0, 2, 3)).square()).mean())


def within_std(x: Tensor) -> float:
    """Standard deviation over the pixels of an image, (N, A, H, W), mean over images and channels."""
    return float(x.flatten(2).std(2).mean())


def statistics(operator: XVolution2d, x: Tensor) -> dict[str, Any]:
    """The figures of one operator for its input (N, C, H, W)."""
    attention: Any = operator.attention
    query, key = attention.query_norm(attention.in_context(attention.query(x), x)), attention.key(x)
    window_sum = attention.windows[0](key)
    mean_key = key.mean((2, 3), keepdim=True)
    total = attention.window_norm(window_sum + attention.mean_weight[:, None, None] * mean_key)
    attended = operator.attention_norm(attention(x))
    convolved = operator.conv_norm(operator.conv(x))
    by_channel = (0, 2, 3)
    attended_variance, convolved_variance = attended.var(by_channel), convolved.var(by_channel)
    return {
        "pixels": list(attended.shape[2:]),
        "window_std": within_std(window_sum) if window_sum[0, 0].numel() > 1 else None,
        "mean_key_std": float(mean_key.std(0).mean()),
        "weight": float(attention.mean_weight.abs().mean()),
        "branch_share": float((attended_variance / (attended_variance + convolved_variance)).mean()),
        "context_share": float((attended.mean((2, 3)).var(0) / attended_variance.clamp(min=1e-12)).mean()),
        "kurtosis_sigmoid": kurtosis(query.sigmoid() * total),
        "kurtosis_identity": kurtosis(query * total),
    }


@torch.inference_mode()
def examine(checkpoint: Path, data: str) -> dict[str, dict[str, Any]]:
    """Figures by the operator's name in the network."""
    model, metadata = load_model(checkpoint)
    loader = evaluation_loader(open_data(data).val, metadata.preprocessing, IMAGES)
    found: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        if isinstance(module, XVolution2d):
            module.register_forward_pre_hook(
                lambda operator, inputs, name=name: found.update({name: statistics(operator, inputs[0])})
            )
    model(next(iter(loader))["image"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, default=Path("results/tiny-imagenet/branch-statistics.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = {"/".join(path.parts[-3:-1]): examine(path, options.data) for path in options.checkpoints}
    write_record(options.output, {"images": IMAGES, "runs": runs})


if __name__ == "__main__":
    main()
