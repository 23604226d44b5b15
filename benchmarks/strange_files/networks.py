"""Files of networks: the training form (.safetensors, .ckpt) and the deployed one (.safetensors, .onnx)."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.kills import draw_rectangles
from benchmarks.strange_files.damage import crafted
from benchmarks.strange_files.subject import Read, Subject, digest
from xvolution.training import DetectionConfig, TrainConfig, deploy, load_model, train
from xvolution.training.checkpoint import read_header

_SIDE = 16


class Classifier(Subject):
    name = "classifier"
    has_checksum = keeps_content = True

    def originals(self, folder: Path) -> list[Path]:
        config = TrainConfig(
            model="resnet18",
            model_kwargs={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 32]},
            small_images=True,
            image_size=_SIDE,
            stages=[2, 3],
            epochs=1,
            limit_train_batches=2,
            accelerator="cpu",
            workers=0,
            progress="off",
            output=str(folder / "run"),
        )
        result = train(config)
        deployed = [folder / "deployed.safetensors", folder / "deployed.onnx"]
        deploy(result.weights, deployed, layout="split")
        return [result.weights, result.checkpoint, *deployed]

    def craft(self, path: Path, rng: random.Random) -> bool:
        # Crafted files have no checksum, as a stranger's need not have one.
        if path.suffix == ".safetensors":
            header = crafted(read_header(path), rng)
            save_file(load_file(path), path, metadata={"xvolution": json.dumps(header)})
        elif path.suffix == ".ckpt":
            checkpoint = torch.load(path, weights_only=True)
            checkpoint["xvolution"] = crafted(checkpoint["xvolution"], rng)
            torch.save(checkpoint, path)
        else:
            return False
        return True

    def read(self, path: Path) -> Read:
        model, metadata = load_model(path)
        description = json.dumps(metadata.to_dict(), sort_keys=True, default=str)
        if path.suffix == ".onnx":
            x = torch.randn(1, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                return Read(self._digest_of_outputs(model, x), description)
        state = model.state_dict()
        return Read(f"{list(state)} {digest(*state.values())}", description)

    def _digest_of_outputs(self, model: torch.nn.Module, x: torch.Tensor) -> str:
        return digest(model(x))


class Detector(Classifier):
    name = "detector"

    def originals(self, folder: Path) -> list[Path]:
        draw_rectangles(folder / "rectangles")
        config = DetectionConfig(
            data=str(folder / "rectangles"),
            architecture="fcos",
            backbone="resnet18",
            pretrained=False,
            norm="batch",
            trainable_layers=5,
            min_size=64,
            max_size=64,
            epochs=1,
            batch_size=2,
            limit_train_batches=1,
            limit_val_batches=1,
            accelerator="cpu",
            workers=0,
            progress="off",
            output=str(folder / "run"),
        )
        result = train(config)
        deployed = folder / "deployed.safetensors"
        deploy(result.weights, [deployed], layout="split")
        return [result.weights, deployed]
