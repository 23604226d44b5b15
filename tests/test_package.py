"""What `import xvolution` brings along, and what the package says about itself."""

import importlib.metadata
import json
import subprocess
import sys
from importlib.resources import files

import xvolution

HEAVY = {
    "timm",
    "lightning",
    "torchvision",
    "datasets",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "torchmetrics",
    "jsonargparse",
    "openvino",
}


def test_import_loads_torch_and_nothing_heavier():
    program = "import json, sys, xvolution; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout))
    assert "torch" in loaded
    assert not loaded & HEAVY


def test_version_is_that_of_the_installed_package():
    assert xvolution.__version__ == importlib.metadata.version("xvolution")


def test_public_names_exist():
    assert [name for name in xvolution.__all__ if not hasattr(xvolution, name)] == []


def test_package_files_are_there():
    package = files("xvolution")
    assert package.joinpath("py.typed").is_file()
    assert package.joinpath("demo", "page.html.jinja").is_file()
