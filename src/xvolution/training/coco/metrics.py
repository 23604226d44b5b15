"""COCO's metrics, computed by pycocotools, over all processes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from xvolution.training.coco.annotations import Annotations
from xvolution.training.coco.masks import checked_mask
from xvolution.training.coco.source import DetectionSource

#: pycocotools' twelve figures, in its order: average precision over IoU 0.50 to 0.95, at 0.50, at 0.75, of small (below 32²
#: pixels), medium and large (above 96²) objects; average recall with 1, 10 and 100 detections of an image, and by size.
FIGURES = ("ap", "ap50", "ap75", "aps", "apm", "apl", "ar1", "ar10", "ar100", "ars", "arm", "arl")
#: What pycocotools calls them.
IOU_TYPES = {"box": "bbox", "mask": "segm"}


def shown(figure: float) -> str:
    """One of COCO's figures in percent; ``none`` if there were no objects."""
    return "none" if figure < 0 else f"{figure:.2%}"


def to_results(
    detections: Mapping[str, Tensor], image_id: int, category_ids: Sequence[int | None]
) -> list[dict[str, Any]]:
    """One image's detections in COCO's submission format.

    Args:
        detections: boxes (n, 4) as x1, y1, x2, y2 in pixels, labels (n,) from 1, scores (n,), and masks (n, 1, H, W) as
            probabilities where there are any.
        image_id: of the image.
        category_ids: of the labels 1, 2, ...

    Returns:
        For each: image_id, category_id, bbox (x, y, width, height), score, and segmentation (compressed RLE) with masks.
    """
    boxes = detections["boxes"].double().cpu()
    sizes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    results = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for box, label, score in zip(sizes, detections["labels"].tolist(), detections["scores"].tolist(), strict=True)
    ]
    if "masks" in detections:
        masks = (detections["masks"][:, 0] > 0.5).to(torch.uint8).cpu().numpy()
        for result, mask in zip(results, masks, strict=True):
            encoded = coco_mask.encode(np.asfortranarray(mask))
            result["segmentation"] = {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
    return results


class CocoMetrics:
    """Collects detections of a source's images and evaluates them.

    Args:
        source: the annotated images.
        masks: evaluate masks as well as boxes.
        category_ids: of the detector's labels 1, 2, ...; None for a class that the source does not have, whose detections are
            left out. Those of the source by default.
    """

    def __init__(
        self, source: DetectionSource, masks: bool = False, category_ids: Sequence[int | None] | None = None
    ) -> None:
        self.source, self.kinds = source, ("box", "mask") if masks else ("box",)
        self.category_ids = source.category_ids if category_ids is None else category_ids
        self.results: list[dict[str, Any]] = []
        self.image_ids: list[int] = []

    def update(self, index: int, detections: Mapping[str, Tensor]) -> None:
        """Add the detections of the image at a position of the source (see ``to_results``)."""
        image_id = self.source.image_id(index)
        self.image_ids.append(image_id)
        results = to_results(detections, image_id, self.category_ids)
        self.results += [result for result in results if result["category_id"] is not None]

    def gather(self) -> None:
        """Collect the detections of all processes; every process then has all of them."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, (self.results, self.image_ids))
        self.results = [result for results, _ in parts for result in results]
        self.image_ids = [image_id for _, ids in parts for image_id in ids]

    def evaluation(self, kind: str) -> Any:
        """pycocotools' ``COCOeval`` of the collected detections, accumulated and summarized; kind is box or mask."""
        return evaluate_results(self.source.annotations, self.results, kind, self.image_ids)

    def compute(self) -> dict[str, float]:
        """COCO's figures as fractions of 1, by names such as ``box_ap50``; -1 if there are no objects, as in COCO."""
        figures = {}
        for kind in self.kinds:
            stats = self.evaluation(kind).stats
            figures.update({f"{kind}_{name}": float(value) for name, value in zip(FIGURES, stats, strict=True)})
        return figures

    def by_category(self) -> list[dict[str, Any]]:
        """For each category its name, objects (crowds left out) and AP of each kind."""
        images = set(self.image_ids)
        annotations = self.source.annotations
        objects = [each for key in images for each in annotations.objects[key] if not each["iscrowd"]]
        rows = [
            {"category": name, "objects": sum(each["category_id"] == key for each in objects)}
            for key, name in annotations.categories.items()
        ]
        for kind in self.kinds:
            # (IoU thresholds, recalls, categories, sizes, numbers of detections), -1 where there is nothing to find
            precision = self.evaluation(kind).eval["precision"][:, :, :, 0, -1]
            for position, row in enumerate(rows):
                found = precision[:, :, position]
                row[f"{kind}_ap"] = float(found[found > -1].mean()) if (found > -1).any() else -1.0
        return rows

    def reset(self) -> None:
        self.results, self.image_ids = [], []


def evaluate_results(
    annotations: Annotations, results: Iterable[dict[str, Any]], kind: str, image_ids: Sequence[int] | None = None
) -> Any:
    """pycocotools' evaluation of results in COCO's format.

    Args:
        annotations: the annotations.
        results: see ``to_results``.
        kind: box or mask.
        image_ids: evaluate on these images; all by default.

    Returns:
        The ``COCOeval``, accumulated and summarized.
    """
    truth = COCO()
    results = list(results)
    present = [each for key in annotations.images for each in annotations.objects[key]]
    # pycocotools takes an object with the id 0 for one that nothing found.
    objects = [{**_judged(each, kind, annotations), "id": number} for number, each in enumerate(present, 1)]
    categories = [{"id": key, "name": name} for key, name in annotations.categories.items()]
    truth.dataset = {"images": list(annotations.images.values()), "annotations": objects, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        # loadRes cannot take an empty list.
        found = truth.loadRes([_of_kind(result, kind) for result in results]) if results else _nothing(truth)
        evaluation = COCOeval(truth, found, IOU_TYPES[kind])
        if image_ids is not None:
            evaluation.params.imgIds = sorted(set(image_ids))
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _judged(annotation: dict[str, Any], kind: str, annotations: Annotations) -> dict[str, Any]:
    """A copy, because pycocotools changes its input."""
    copied = dict(annotation)
    if kind == "mask":
        copied["segmentation"] = checked_mask(annotation, annotations.images[annotation["image_id"]], annotations.path)
    return copied


def _of_kind(result: dict[str, Any], kind: str) -> dict[str, Any]:
    """pycocotools takes the areas of detections from their boxes where they have boxes, and from their masks otherwise."""
    left_out = "segmentation" if kind == "box" else "bbox"
    return {name: value for name, value in result.items() if name != left_out}


def _nothing(truth: Any) -> Any:
    empty = COCO()
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty
