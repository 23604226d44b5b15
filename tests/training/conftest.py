"""Runs of a second or two: a ResNet of four narrow blocks on 16x16 digits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xvolution.training import TrainConfig, deploy, train
from xvolution.training.fit import TrainResult

TINY: dict[str, Any] = {
    "model": "resnet18",
    "model_kwargs": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 32]},
    "small_images": True,
    "image_size": 16,
    "batch_size": 32,
    "limit_train_batches": 6,
    "epochs": 2,
    "accelerator": "cpu",
    "devices": 1,
    "workers": 0,
    "progress": "off",
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., TrainConfig]:
    """A configuration of a tiny run in `tmp_path/run`, changed by keyword."""

    def configure(**changes: Any) -> TrainConfig:
        return TrainConfig(**{**TINY, "output": str(tmp_path / "run"), **changes})

    return configure


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """An X-volution network after two short epochs, with random attention: its two branches both count."""

    output = str(tmp_path_factory.mktemp("trained") / "run")
    return train(TrainConfig(**TINY, output=output, stages=[2, 3], operator_options={"zero_init": False}))


@pytest.fixture(scope="session")
def exported(trained: TrainResult, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The deployed forms of `trained`, by the endings of their files."""
    for package in ("onnxruntime", "onnxscript", "openvino"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("exported")
    files = {ending: folder / f"model.{ending}" for ending in ("safetensors", "onnx", "xml", "pt2")}
    deploy(trained.weights, list(files.values()), layout="single")
    return files


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes of 12 random images each, `cats` and `dogs`, without a split."""
    return write_folder(tmp_path / "pictures", {"cats": 12, "dogs": 12})


def write_folder(folder: Path, classes: dict[str, int]) -> Path:
    generator = np.random.default_rng(0)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture
def test_data() -> Path:
    """The folder of real data sets, where there is one."""
    root = Path(__file__).parents[2]
    return Path(os.environ.get("XVOLUTION_TEST_DATA", root.parent / "shared" / "data"))
