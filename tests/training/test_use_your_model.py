"""What docs/use-your-model.md shows is what it says: its code blocks are run, in their order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import xvolution

PAGE = Path(__file__).parents[2] / "docs" / "use-your-model.md"


@pytest.mark.slow
def test_the_page_runs(exported: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for path in {path for first in exported.values() for path in first.parent.glob("model.*")}:
        (tmp_path / path.name).symlink_to(path)
    pixels = np.random.default_rng(0).integers(0, 255, (37, 52, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((520, 370)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    expected = xvolution.load(exported["safetensors"])
    logits = expected(expected.preprocess("photo.jpg")[None]).numpy()
    names: dict[str, Any] = {}
    for block in blocks:
        assert len(block.splitlines()) <= 18
        exec(compile(block, str(PAGE), "exec"), names)
        if "logits" in block:
            np.testing.assert_allclose(np.asarray(names.pop("logits")), logits, rtol=1e-3, atol=1e-4)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == str(expected.classes)
    assert said[2:] == 3 * [expected.classes[logits.argmax()]]
