"""Does X-volution help Mask R-CNN on Penn-Fudan, and what does it cost? The plain detector beside it, seed by seed.

    python -m experiments.penn_fudan --data ../shared/data/penn-fudan --backbone-weights runs/backbone/model.safetensors

Trains both with the recipe of ``configs/penn_fudan.yaml``, both at once, each on as many threads as OMP_NUM_THREADS says. Deploys
the last epoch's weights, evaluates the training and the deployed form, and compares what the two find image by image. The
record is written after every seed; finished runs in the ``--runs`` folder are taken as they are, unfinished ones go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import write_record
from xvolution.models.detect_match import match_detections
from xvolution.training import deploy, load_model
from xvolution.training.checkpoint import read_checkpoint
from xvolution.training.coco.dataset import DetectionDataset
from xvolution.training.coco.source import open_part
from xvolution.training.data.sampler import Draw

OPERATORS = ("conv", "xvolution")
RECIPE = Path("configs/penn_fudan.yaml")


def train(operator: str, seed: int, options: argparse.Namespace) -> subprocess.Popen[bytes] | None:
    """Start, or go on with, one training in a process of its own; None where it is finished."""
    folder = options.runs / f"{operator}-{seed}"
    if (folder / "finished").exists():
        return None
    command = [sys.executable, "-m", "xvolution.cli", "train", "--config", str(RECIPE), "--data", options.data]
    command += [
        "--backbone-weights",
        options.backbone_weights,
        "--operator",
        operator,
        "--seed",
        str(seed),
        "--workers",
        "0",
    ]
    command += ["--output", str(folder), "--progress", "lines"]
    if (folder / "last.ckpt").exists():
        command += ["--resume", "last"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def measure(operator: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What one finished run is worth, in both forms."""
    folder = options.runs / f"{operator}-{seed}"
    # The last epoch: the best one would be chosen by the images that judge it.
    forms = {"training": folder / "last.ckpt", "deployed": folder / "deployed.safetensors"}
    deployed = deploy(forms["training"], [forms["deployed"]])
    return {
        "operator": operator,
        "seed": seed,
        "training": deployed.metadata.provenance,
        "training_seconds": sum(row["seconds"] for row in read_checkpoint(forms["training"])["history"]),
        "parameters": sum(parameter.numel() for parameter in deployed.model.parameters()),
        "forms": {name: evaluated(path, options) for name, path in forms.items()},
        "deployed_agrees": agreement(forms, options.data),
    }


def evaluated(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one form, from a process of its own: its peak memory is that of the process."""
    report = path.with_suffix(".json")
    command = [
        sys.executable,
        "-m",
        "xvolution.cli",
        "evaluate",
        str(path),
        "--data",
        options.data,
        "--json",
        str(report),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(report.read_text())


@torch.inference_mode()
def agreement(forms: dict[str, Path], data: str) -> dict[str, Any]:
    """The detections of both forms on every image of the validation part, matched."""
    training, deployed = (load_model(path)[0] for path in forms.values())
    images = DetectionDataset(open_part(data, "val", masks=True))
    inputs = [[images[Draw(index)]["image"]] for index in range(len(images))]
    found = [(training(image)[0], deployed(image)[0]) for image in inputs]
    return vars(match_detections([a for a, _ in found], [b for _, b in found]))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line for each run."""
    lines = [
        "| operator | seed | box AP | AP50 | mask AP | AP50 | s per image, deployed | MiB, deployed | forms agree |"
    ]
    lines.append("|" + " --- |" * 9)
    for row in rows:
        form, agreed = row["forms"]["deployed"], row["deployed_agrees"]
        figures = [f"{100 * form['figures'][name]:.1f}" for name in ("box_ap", "box_ap50", "mask_ap", "mask_ap50")]
        cost = [f"{form['seconds_per_image']:.2f}", f"{form['peak_memory'] / 2**20:.0f}"]
        agreement = f"{agreed['matched']} of {agreed['matched'] + agreed['unmatched']}"
        lines.append("| " + " | ".join([row["operator"], str(row["seed"]), *figures, *cost, agreement]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone-weights", required=True, help="a ResNet-18 that `xvolution train` wrote")
    parser.add_argument("--runs", type=Path, default=Path("runs/penn-fudan"))
    parser.add_argument("--output", type=Path, default=Path("results/penn-fudan.json"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        processes = {operator: train(operator, seed, options) for operator in OPERATORS}
        for operator, process in processes.items():
            folder = options.runs / f"{operator}-{seed}"
            if process is not None:
                if process.wait() != 0:
                    raise SystemExit(f"the training in {folder} failed; see {folder.with_suffix('.log')}")
                (folder / "finished").touch()
        rows += [measure(operator, seed, options) for operator in OPERATORS]
        record = {"rows": rows, "seeds": seed + 1, "recipe": RECIPE.read_text(), "backbone": options.backbone_weights}
        write_record(options.output, record)
    print(table(rows))


if __name__ == "__main__":
    main()
