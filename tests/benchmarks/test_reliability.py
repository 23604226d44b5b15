"""A few kills and a few strange files: the short form of what `docs/reliability.md` reports.

``XVOLUTION_KILLS`` and ``XVOLUTION_STRANGE_FILES`` are how many.
"""

import os
import random
from pathlib import Path

import pytest

pytest.importorskip("lightning")

from benchmarks import kills, strange_files

KILLS = int(os.environ.get("XVOLUTION_KILLS", "2"))
FILES = int(os.environ.get("XVOLUTION_STRANGE_FILES", "40"))


@pytest.mark.slow
def test_killed_trainings_end_as_whole_ones_do(tmp_path: Path) -> None:
    tally = kills.check(kills.Training(), KILLS, random.Random(0), tmp_path)
    assert tally.holds, tally
    assert tally.kills.total() == KILLS


@pytest.mark.slow
def test_strange_files_are_refused_or_the_same() -> None:
    result = strange_files.check(FILES)
    assert result["failures"] == []
    assert sum(result["totals"].values()) == FILES


def test_a_strange_file_is_made_of_its_number_alone() -> None:
    values = {"model": {"name": "resnet18", "kwargs": {"layers": [1, 2]}}, "class_names": ["a"]}
    made = [strange_files.crafted(values, random.Random(index)) for index in (3, 3, 4)]
    assert made[0] == made[1] != made[2]
    contents = [bytearray(range(200)) for _ in strange_files.DAMAGES]
    for damage, each in zip(strange_files.DAMAGES.values(), contents, strict=True):
        damage(each, random.Random(1))
        assert each != bytearray(range(200))


def test_a_damage_that_is_not_noticed_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"no file of a network")
    assert strange_files.outcome(path, ({}, None))[0] == "sentence"
    monkeypatch.setattr(strange_files, "load_model", lambda path: 1 / 0)
    assert strange_files.outcome(path, ({}, None)) == ("traceback", "ZeroDivisionError: division by zero")
