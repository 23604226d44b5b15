"""Detectors in a comparison: COCO's average precision, also on resampled images, and the cost of a detector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xvolution.bench import count_parameters
from xvolution.bench.detectors import count_detector_flops
from xvolution.compare.statistics import DRAWS, Interval, resampled_difference
from xvolution.compare.task import ComparedTask, Form, Metric, Timing
from xvolution.deploy.measure import TORCH
from xvolution.deploy.reparameterize import layouts_of, reparameterize
from xvolution.deploy.runtimes import RUNTIMES, ExportError, LoadedFile
from xvolution.models.detect_deploy import deploy_detector
from xvolution.models.detect_export import export_detector
from xvolution.training.coco.data import detection_loader
from xvolution.training.coco.resampling import resampled_precision
from xvolution.training.config import DetectionConfig
from xvolution.training.detection.evaluate import DetectionEvaluation
from xvolution.training.detection.train import new_detector, opened, require_norms
from xvolution.training.files import atomic_path
from xvolution.training.tasks import DETECT

_BOX = (Metric("box_ap", "box AP"), Metric("box_ap50", "box AP50"), Metric("box_ap75", "box AP75"))
_MASK = (Metric("mask_ap", "mask AP"), Metric("mask_ap50", "mask AP50"), Metric("mask_ap75", "mask AP75"))


class Detectors(ComparedTask[DetectionConfig, DetectionEvaluation]):
    """See `ComparedTask`.

    Args:
        kind: kind of average precision that ranks detectors, box or mask.
    """

    timed_on = (
        ", the first images of the evaluation; the time of a detector depends on the number of objects that it finds"
    )
    judged_anew = ", with average precision recomputed for each draw"

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.metrics = (*_MASK, *_BOX[:2]) if kind == "mask" else _BOX

    def builder(self, recipe: DetectionConfig) -> Callable[[DetectionConfig], nn.Module]:
        require_norms(recipe)
        splits = opened(recipe)
        judging = None if recipe.limit_val_batches is None else recipe.limit_val_batches * recipe.batch_size
        splits.val.require_objects(judging)
        categories = len(splits.train.class_names)

        def build(train: DetectionConfig) -> nn.Module:
            norm, layers = (
                train.backbone_norm,
                train.trained_layers,
            )  # of the network with its weights, which are left out
            without = replace(train, pretrained=False, norm=norm, trainable_layers=layers)
            return new_detector(without, categories)[0]

        return build

    def judge(
        self, trainings: Sequence[DetectionConfig], judged: Sequence[DetectionEvaluation], folder: Path
    ) -> dict[str, Any]:
        (only,) = judged
        evaluation = only.judged.evaluation(self.kind)
        ids = np.array(evaluation.params.imgIds)
        # The same generator in every cell: draw i takes the same images for all of them.
        counts = np.random.default_rng(0).multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=DRAWS)
        with atomic_path(folder / "resampled.npz") as path, open(path, "wb") as file:
            figure = only.figures[self.metric.key]
            np.savez(file, image_ids=ids, figure=figure, drawn=resampled_precision(evaluation, counts))
        return {metric.key: only.figures[metric.key] for metric in self.metrics}

    def costs(self, checkpoint: Path) -> dict[str, Any]:
        model, metadata = DETECT.load(checkpoint)
        # In float64 no rounding makes detections of nearly equal scores change places, which would look like another detector.
        least = layouts_of(reparameterize(model))
        deployed = deploy_detector(model.double(), layout=least, fold_norms=True)
        before, after = (count_detector_flops(each, "mask" in metadata.model.parts) for each in (model, deployed))
        return {
            "parameters": count_parameters(model),
            "flops": before.flops,
            "deployed_parameters": count_parameters(deployed),
            "deployed_flops": after.flops,
            "counted": {"pixels": list(after.pixels), "masks": after.masks},
        }

    def counted(self, result: Mapping[str, Any]) -> str:
        (height, width), masks = result["counted"]["pixels"], result["counted"]["masks"]
        most = f" and {masks} regions in the mask head, the most that it takes" if masks else ""
        return f"one image of {height} x {width} pixels{most}, without the heads of regions that no variant changes"

    def forms(self, recipe: DetectionConfig, checkpoints: Mapping[str, Path], timing: Timing) -> dict[str, Form]:
        val, device = opened(recipe).val, timing.device
        batch = next(iter(detection_loader(val, timing.batch_size, on_bad_image=recipe.on_bad_image)))
        images = [image.to(device) for image in batch["image"]]
        forms: dict[str, Form] = {}
        folder, threads = TemporaryDirectory(), torch.get_num_threads()
        for label, checkpoint in checkpoints.items():
            model, _ = DETECT.load(checkpoint, device)
            deployed = deploy_detector(model, images, "auto", True, runtime=timing.runtime, threads=threads)
            found = sum(len(each["boxes"]) for each in _run(deployed, images))
            sizes = [list(image.shape[1:]) for image in images]
            facts = {"layouts": sorted(set(layouts_of(deployed).values())), "found": found, "pixels": sizes}
            if timing.runtime == TORCH:
                call: Callable[[], object] = partial(_run, deployed, images)
            else:
                path = Path(folder.name, f"{len(forms)}{RUNTIMES[timing.runtime].ending}")
                file = _written(deployed, path, images[0], timing.runtime, threads)
                call = partial(_run_file, file, images[0], folder)
            forms[label] = Form(call, facts)
        return forms

    def bootstrap(self, own: Sequence[Path], base: Sequence[Path]) -> Interval | None:
        sides = [[_resampled(folder) for folder in side] for side in (own, base)]
        images = sides[0][0]["image_ids"]
        if any(not np.array_equal(each["image_ids"], images) for side in sides for each in side):
            return None
        values, baseline = (np.array([float(each["figure"]) for each in side]) for side in sides)
        drawn, drawn_baseline = (np.stack([each["drawn"] for each in side]) for side in sides)
        return resampled_difference(values, baseline, drawn, drawn_baseline, len(images))


DETECTORS, DETECTORS_WITH_MASKS = Detectors("box"), Detectors("mask")


def _run(detector: nn.Module, images: list[Tensor]) -> list[dict[str, Tensor]]:
    with torch.inference_mode():
        return detector(images)


def _written(detector: nn.Module, path: Path, image: Tensor, runtime: str, threads: int) -> LoadedFile:
    """The whole detector in a runtime."""
    report = export_detector(detector, path, image)
    if report.content != "detector":
        raise ExportError(f"{RUNTIMES[runtime].title} cannot take the whole detector: {report.reason}")
    return RUNTIMES[runtime].load(path, threads=threads)


def _run_file(file: LoadedFile, image: Tensor, folder: TemporaryDirectory[str]) -> list[Tensor]:
    """Bound to the folder, so that the file is there as long as its call."""
    return file(image)


def _resampled(folder: Path) -> dict[str, Any]:
    with np.load(folder / "resampled.npz") as file:
        return dict(file)
