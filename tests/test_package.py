"""What `import xvolution` brings along, and what the package says about itself."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

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


def loaded_by(program):
    """The libraries that a program has imported at its end."""
    end = "; import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    run = subprocess.run([sys.executable, "-c", program + end], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


def test_the_first_name_loads_torch_and_nothing_heavier():
    assert "torch" not in loaded_by("import xvolution; xvolution.__version__; dir(xvolution)")
    for program in ("import xvolution; xvolution.convert", "from xvolution import XVolution2d"):
        loaded = loaded_by(program)
        assert "torch" in loaded
        assert not loaded & HEAVY


def test_the_names_are_those_that_type_checkers_see():
    source = ast.parse(Path(xvolution.__file__).read_text())
    block = next(node for node in source.body if isinstance(node, ast.If))
    seen = {alias.asname for each in block.body for alias in each.names}
    assert seen == set(xvolution.__all__) - {"__version__"}


def test_whoever_has_the_register_has_the_operators():
    names = "from xvolution.conversion.register import operator_names; assert 'acmix' in operator_names()"
    for first in ("", "import xvolution.operators.acmix; ", "import xvolution.conversion.convert; "):
        loaded_by(first + names)


def test_version_is_that_of_the_installed_package():
    assert xvolution.__version__ == importlib.metadata.version("xvolution")


def test_public_names_exist():
    assert [name for name in xvolution.__all__ if not hasattr(xvolution, name)] == []
    assert not hasattr(xvolution, "nothing")
    assert set(xvolution.__all__) <= set(dir(xvolution))


def test_package_files_are_there():
    package = files("xvolution")
    assert package.joinpath("py.typed").is_file()
    assert package.joinpath("demo", "page.html.jinja").is_file()


def test_what_messages_and_pages_tell_to_install_can_be_installed():
    extras = set(importlib.metadata.metadata("xvolution").get_all("Provides-Extra"))
    root = Path(__file__).parents[1]
    texts = [*root.glob("*.md"), *(root / "docs").rglob("*.md"), *(root / "src").rglob("*.py")]
    named = {
        extra.strip()
        for path in texts
        for listed in re.findall(r"xvolution\[([a-z, ]+)\]", path.read_text(encoding="utf-8"))
        for extra in listed.split(",")
    }
    assert {"train", "export", "all"} <= named <= extras
