"""Average precision of images that are drawn again is what pycocotools computes of copies of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training import coco_folder
from tests.training.test_coco import guesses
from xvolution.training.coco.catalog import open_part
from xvolution.training.coco.metrics import CocoMetrics, evaluate_results
from xvolution.training.coco.resampling import resampled_precision


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> CocoMetrics:
    """Detections of which many have the score of one in another image."""
    folder = coco_folder.write_folder(tmp_path_factory.mktemp("resampling"), count=12)
    return with_equal_scores(guesses(open_part(folder, "val", masks=True)))


def with_equal_scores(metrics: CocoMetrics) -> CocoMetrics:
    """Scores of 0.9, 0.8, ... in each image: where two of one image are equal, copies come in another order."""
    for key in metrics.image_ids:
        for place, result in enumerate(each for each in metrics.results if each["image_id"] == key):
            result["score"] = 0.9 - 0.1 * place
    return metrics


def of_copies(metrics: CocoMetrics, kind: str, counts: np.ndarray) -> float:
    """pycocotools' figure where each image is there so many times, each copy beside its original."""
    own = metrics.source.annotations
    images: dict[int, Any] = {}
    objects: dict[int, Any] = {}
    results = []
    for key, count in zip(sorted(own.images), counts, strict=True):
        for copy in range(count):
            new = 100 * key + copy
            images[new] = {**own.images[key], "id": new}
            objects[new] = [{**each, "id": 100 * each["id"] + copy, "image_id": new} for each in own.objects[key]]
            results += [{**each, "image_id": new} for each in metrics.results if each["image_id"] == key]
    return float(evaluate_results(replace(own, images=images, objects=objects), results, kind).stats[0])


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_drawing_images_again_is_judging_copies(metrics: CocoMetrics, kind: str) -> None:
    images = len(metrics.source)
    counts = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=12)
    found = resampled_precision(metrics.evaluation(kind), counts)
    assert found == pytest.approx([of_copies(metrics, kind, each) for each in counts], abs=1e-12)
    assert len(set(found.round(6))) > 6


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_every_image_once_is_the_figure_itself(metrics: CocoMetrics, kind: str) -> None:
    counts = np.ones((1, len(metrics.source)), dtype=int)
    found = resampled_precision(metrics.evaluation(kind), counts)
    assert found == pytest.approx([metrics.compute()[f"{kind}_ap"]], abs=1e-12)


def test_every_image_once_is_the_figure_itself_on_coco(test_data: Path) -> None:
    if not (test_data / "coco-mini").is_dir():
        pytest.skip("the folder of real data sets is not here")
    metrics = with_equal_scores(guesses(open_part(test_data / "coco-mini", "val", masks=True)))
    counts = np.ones((1, len(metrics.source)), dtype=int)
    assert resampled_precision(metrics.evaluation("box"), counts) == pytest.approx([metrics.compute()["box_ap"]])


def test_large_data_are_taken_in_parts(metrics: CocoMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = metrics.evaluation("box")
    counts = np.random.default_rng(1).integers(0, 3, (7, len(metrics.source)))
    whole = resampled_precision(evaluation, counts)
    monkeypatch.setattr("xvolution.training.coco.resampling._AT_ONCE", 1)
    assert np.array_equal(resampled_precision(evaluation, counts), whole)


def test_a_draw_with_nothing_to_find_has_no_figure(metrics: CocoMetrics) -> None:
    nothing = np.zeros((1, len(metrics.source)), dtype=int)
    nothing[0, -1] = 5  # the image without objects
    assert np.isnan(resampled_precision(metrics.evaluation("box"), nothing)).all()
    with pytest.raises(ValueError, match=r"they must be \(draws, 12 images\)"):
        resampled_precision(metrics.evaluation("box"), nothing[:, 1:])
