"""The comparison of necks on the nuclei."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("pycocotools")

from experiments import centroids
from experiments.centroids import CRITERIA, Picture, build, difference, f1, fits, main, matched

NUCLEI = Path(__file__).parents[2].parent / "shared" / "data" / "nuclei"
SMALL = Namespace(neck=[8, 8], heads=[8, 8, 8], weights=None)


def test_boxes_turn_with_the_picture() -> None:
    """A box is drawn into the picture; wherever the crop puts the drawing, there is its box."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.zeros(3, 40, 50, dtype=torch.uint8)
    pixels[:, 18:21, 22:29] = 255
    seen = set()
    for _ in range(40):
        crop = Picture(pixels, torch.tensor([[22.0, 18.0, 29.0, 21.0], [1.0, 1.0, 3.0, 3.0]])).cropped(36, random)
        rows, columns = crop.pixels[0].nonzero(as_tuple=True)
        drawn = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
        assert drawn in crop.boxes.int().tolist()
        seen.add(drawn[2] - drawn[0])
    assert seen == {3, 7}


def test_a_nucleus_is_found_once() -> None:
    truth = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    boxes = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 4], [21, 0, 31, 10]])
    assert matched(fits("boxes", boxes, truth)) == [True, False, False, True]
    for criterion in CRITERIA:
        assert matched(fits(criterion, boxes, torch.zeros(0, 4))) == [False] * 4
        assert matched(fits(criterion, torch.zeros(0, 4), truth)) == []
    assert f1(np.array([2, 2, 0])) == pytest.approx(2 / 3)
    assert f1(np.array([0, 0, 0])) == 0


def test_a_centroid_counts_inside_its_nucleus_whatever_its_box() -> None:
    """The second one is in two boxes, and its own is the nearer; the third is in a box that is taken, the last in none."""
    truth = torch.tensor([[0.0, 0, 10, 10], [6, 0, 16, 10]])
    centres = torch.tensor([[5.0, 5], [9, 5], [3, 5], [30, 5]])
    boxes = torch.cat([centres - 40, centres + 40], 1)
    assert matched(fits("centroids", boxes, truth)) == [True, True, False, False]
    assert matched(fits("boxes", boxes, truth)) == [False] * 4


def test_the_difference_has_its_sign_and_an_interval() -> None:
    random = np.random.default_rng(0)
    cells = {}
    for name, found in (("better", 9), ("base", 7)):
        images = [[[found, int(n), 10 - found] for n in random.integers(0, 3, 30)] for _ in range(3)]
        cells[name] = [{"seed": seed, "boxes": {"images": rows}} for seed, rows in enumerate(images)]
    gain = difference(cells["better"], cells["base"], "boxes")
    assert gain is not None
    assert gain.above
    assert gain.seeds == 3
    loss = difference(cells["base"], cells["better"][1:], "boxes")
    assert loss is not None
    assert loss.below
    assert loss.seeds == 2


@pytest.mark.parametrize("neck", ["xvolution", "se"])
def test_necks_without_blocks_start_with_the_same_outputs(neck: str) -> None:
    torch.manual_seed(0)
    plain = build("conv", SMALL).eval()
    torch.manual_seed(0)
    other = build(neck, SMALL).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for expected, found in zip(plain(x), other(x), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.skipif(not NUCLEI.is_dir(), reason=f"{NUCLEI} is not there")
def test_a_trial_on_nuclei_leaves_out_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--data", str(NUCLEI), "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "record.json")]
    flags += ["--limit", "4", "--epochs", "1", "--batch", "2", "--crop", "64", "--seeds", "0", "--every", "2"]
    flags += ["--neck", "8", "8", "--heads", "8", "8", "8"]
    main([*flags, "--necks", "conv"])
    trained = []
    monkeypatch.setattr(
        centroids, "train", lambda neck, seed, pictures, options: trained.append(neck) or build(neck, options).eval()
    )
    main([*flags, "--necks", "conv", "xvolution"])
    assert trained == ["xvolution"]
    record = json.loads((tmp_path / "record.json").read_text())
    assert [row["neck"] for row in record["summary"]] == ["conv", "xvolution"]
    assert record["costs"]["xvolution"]["flops"] > record["costs"]["conv"]["flops"] > 0
    for criterion in CRITERIA:
        assert record["summary"][1][criterion]["difference"]["seeds"] == 1
        assert sum(len(cell[criterion]["images"]) for cell in record["cells"]) == 8
