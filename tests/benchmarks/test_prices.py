"""The prices by which a budget is kept agree with the latencies that were measured."""

import json
from pathlib import Path
from statistics import mean

import pytest

from xvolution.conversion import budget

RECORD = Path(__file__).parents[2] / "results" / "bench-networks.json"


def test_estimates_are_near_what_was_measured():
    pytest.importorskip("timm")
    from benchmarks.prices import fit, points

    cases = json.loads(RECORD.read_text())["cases"].values()
    found = points(case for case in cases if case["network"] in ("resnet18", "mobilenetv2_100"))
    assert len(found) == 12  # two networks, two runtimes, three places
    assert mean(abs(point.estimate() - point.measured) for point in found) < 0.03
    numbers, operations = fit(found)
    assert budget.NUMBERS / 4 <= numbers <= 4 * budget.NUMBERS
    assert operations <= 4 * budget.OPERATIONS


def test_the_whole_record_is_read_without_the_detectors_package():
    pytest.importorskip("timm")
    from benchmarks.prices import points

    cases = json.loads(RECORD.read_text())["cases"].values()
    detectors = [case for case in cases if case["network"] == "yolo11n"]
    assert detectors
    assert points(detectors) == []
