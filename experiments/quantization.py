"""What does 8-bit quantization cost a deployed X-volution network, beside the plain one? ResNet-18 on Tiny-ImageNet.

    python -m experiments.quantization --data ../shared/data/tiny-imagenet --runs runs/quantization

Trains both networks with one seed (a finished run in the ``--runs`` folder is taken as it is), deploys them with norms folded,
quantizes with images of the training split, and evaluates on ``val``.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.record import write_record
from xvolution import reparameterize
from xvolution.deploy.equalize import equalize
from xvolution.deploy.quantize import quantize
from xvolution.deploy.runtimes import OnnxRuntime
from xvolution.training import TrainConfig, load_model, open_data, train
from xvolution.training.classification.exported_classifier import ExportedClassifier
from xvolution.training.data.transforms import Preprocessing, evaluation_transform

STAGES = (2, 3)
BATCH = 100


def trained(operator: str, data: str, runs: Path, epochs: int) -> tuple[nn.Module, Preprocessing, TrainConfig]:
    """The trained network in eval mode, in its training form; how its images are prepared; how it was trained."""
    recipe = TrainConfig(
        model="resnet18",
        model_kwargs={"channels": [32, 64, 128, 256]},
        small_images=True,
        operator=operator,
        stages=list(STAGES),
        data=data,
        image_size=32,
        epochs=epochs,
        batch_size=128,
        lr=0.2,
        precision="bf16",
        channels_last=True,
        workers=0,
        output=str(runs / operator),
        progress="lines",
    )
    weights = recipe.run_dir / "model.safetensors"
    if not weights.exists():
        train(recipe)
    model, metadata = load_model(weights)
    return model.eval(), metadata.preprocessing, recipe


def images_of(data: str, preprocessing: Preprocessing, count: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """(calibration batches from the training split, evenly spread; the images of val; their labels)."""
    splits = open_data(data)
    transform = evaluation_transform(preprocessing)
    chosen = torch.linspace(0, len(splits.train) - 1, count).long().tolist()
    calibration = torch.stack([transform(splits.train.image(index)) for index in chosen])
    judged = torch.stack([transform(splits.val.image(index)) for index in range(len(splits.val))])
    return list(calibration.split(32)), judged, torch.as_tensor(splits.val.labels)


@torch.inference_mode()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """(images, classes)."""
    return torch.cat([model(batch) for batch in images.split(BATCH)])


def judged(logits: Tensor, reference: Tensor, labels: Tensor) -> dict[str, float]:
    """Figures of one form, beside the fp32 logits of the same network."""
    return {
        "top1": (logits.argmax(1) == labels).double().mean().item(),
        "top5": (logits.topk(5).indices == labels[:, None]).any(1).double().mean().item(),
        "loss": nn.functional.cross_entropy(logits.double(), labels).item(),
        "predictions_that_differ": int((logits.argmax(1) != reference.argmax(1)).sum()),
        "relative_error": ((logits - reference).norm() / reference.norm()).item(),
    }


def quantized(deployed: nn.Module, calibration: list[Tensor], images: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Logits of the int8 file, and what ``quantize`` reports."""
    with tempfile.TemporaryDirectory() as folder:
        report = quantize(deployed, Path(folder) / "int8.onnx", calibration)
        logits = logits_of(ExportedClassifier(report.path, OnnxRuntime()), images)
    return logits, {"bytes_fp32": report.bytes_before, "bytes_int8": report.bytes_after}


def main() -> None:
    """Train, deploy, quantize, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with Tiny-ImageNet's parquet files")
    parser.add_argument("--runs", type=Path, default=Path("runs/quantization"))
    parser.add_argument("--output", type=Path, default=Path("results/quantization.json"))
    parser.add_argument("--calibration", type=int, default=256, help="images of the training split")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    networks = {
        operator: trained(operator, options.data, options.runs, options.epochs) for operator in ("conv", "xvolution")
    }
    _, preprocessing, recipe = networks["xvolution"]
    calibration, images, labels = images_of(options.data, preprocessing, options.calibration)
    rows = []
    for operator, (model, _, _) in networks.items():
        for layout in ("single", "split") if operator == "xvolution" else ("single",):
            deployed = reparameterize(model, calibration[0], layout=layout, fold_norms=True)
            reference = logits_of(deployed, images)
            row = {"network": operator, "layout": layout if operator == "xvolution" else None}
            rows.append({**row, "form": "fp32", **judged(reference, reference, labels)})
            for equalized in (False, True) if operator == "xvolution" else (False,):
                form = equalize(deployed, calibration) if equalized else deployed
                logits, sizes = quantized(form, calibration, images)
                rows.append(
                    {**row, "form": "int8", "equalized": equalized, **judged(logits, reference, labels), **sizes}
                )
                print(rows[-1], flush=True)
    write_record(
        options.output,
        {
            "rows": rows,
            "seeds": 1,
            "val_images": len(images),
            "calibration_images": options.calibration,
            "onnxruntime": OnnxRuntime().version(),
            "recipe": {name: value for name, value in asdict(recipe).items() if name not in ("data", "output")},
            "stages": STAGES,
        },
    )


if __name__ == "__main__":
    main()
