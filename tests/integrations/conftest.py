"""Ultralytics is kept from the network, and from the settings of whoever runs the tests."""

import os
import tempfile
from pathlib import Path

import pytest

DATA = Path(__file__).parents[3] / "shared/data"

os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="xvolution-yolo-"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def folder(name: str) -> Path:
    """A folder of real data; the test is skipped where it is absent."""
    path = DATA / name
    if not path.is_dir():
        pytest.skip(f"real data are absent: shared/data/{name}")
    return path


@pytest.fixture(scope="session")
def coco():
    return folder("coco-mini")


@pytest.fixture(scope="session")
def clothing():
    return folder("clothing")
