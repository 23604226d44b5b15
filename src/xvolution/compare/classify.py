"""Classifiers in a comparison: top-1 on every image, FLOPs and latency of one square image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xvolution.bench import count_flops, count_parameters
from xvolution.bench.written import WrittenFiles
from xvolution.compare.statistics import Interval, bootstrap_difference
from xvolution.compare.task import ComparedTask, Form, Metric, Timing
from xvolution.deploy.measure import TORCH
from xvolution.deploy.reparameterize import layouts_of, reparameterize
from xvolution.models import build_model
from xvolution.training.classification.evaluate import EvaluationResult
from xvolution.training.classification.train import image_size, model_spec
from xvolution.training.classification.weights import require_unseen_files
from xvolution.training.config import TrainConfig
from xvolution.training.data import open_data
from xvolution.training.data.sources import Subset
from xvolution.training.files import atomic_path
from xvolution.training.fold import Fold, parse_holdout
from xvolution.training.tasks import CLASSIFY


class Classifiers(ComparedTask[TrainConfig, EvaluationResult]):
    """See `ComparedTask`."""

    metrics = (Metric("top1", "top-1"), Metric("top5", "top-5"), Metric("loss", "loss", fraction=False))
    timed_on = ""
    judged_anew = ""

    def builder(self, recipe: TrainConfig) -> Callable[[TrainConfig], nn.Module]:
        splits = open_data(recipe.data, recipe.holdout, recipe.holdout_seed, recipe.max_pixels, recipe.outside_images)
        size = image_size(recipe, splits)

        def build(train: TrainConfig) -> nn.Module:
            # A file that is not there yet is written by a training of this comparison; the training that takes it checks it.
            require_unseen_files(
                [file for file in (train.weights, train.teacher) if file and Path(file).is_file()], splits
            )
            spec = model_spec(train, len(splits.train.class_names), splits.survey.grey)
            return build_model(spec, example_inputs=torch.zeros(1, spec.in_chans, size, size))

        return build

    def judge(
        self, trainings: Sequence[TrainConfig], judged: Sequence[EvaluationResult], folder: Path
    ) -> dict[str, Any]:
        found = [_right(*each) for each in zip(trainings, judged, strict=True)]
        index, correct = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(index, kind="stable")
        with atomic_path(folder / "correct.npz") as path, open(path, "wb") as file:
            np.savez(file, index=index[order], correct=correct[order])
        images = [each.images for each in judged]
        return {
            metric.key: float(np.average([getattr(each, metric.key) for each in judged], weights=images))
            for metric in self.metrics
        }

    def costs(self, checkpoint: Path) -> dict[str, Any]:
        model, metadata = CLASSIFY.load(checkpoint)
        example = metadata.example_images()
        least = layouts_of(reparameterize(model))
        deployed = reparameterize(model, example_inputs=example, layout=least, fold_norms=True)
        return {
            "parameters": count_parameters(model),
            "flops": count_flops(model, example) or 0,
            "deployed_parameters": count_parameters(deployed),
            "deployed_flops": count_flops(deployed, example) or 0,
        }

    def counted(self, result: Mapping[str, Any]) -> str:
        return "one image"

    def forms(self, recipe: TrainConfig, checkpoints: Mapping[str, Path], timing: Timing) -> dict[str, Form]:
        forms, files, threads = {}, WrittenFiles(), torch.get_num_threads()
        for label, checkpoint in checkpoints.items():
            model, metadata = CLASSIFY.load(checkpoint, timing.device)
            example = metadata.example_images(batch_size=timing.batch_size).to(timing.device)
            deployed = reparameterize(model, example, "auto", fold_norms=True, runtime=timing.runtime, threads=threads)
            layouts = sorted(set(layouts_of(deployed).values()))
            facts = {"layouts": layouts, "flops": count_flops(deployed, example[:1])}
            if timing.runtime == TORCH:
                call: Callable[[], object] = partial(_run, deployed, example)
            else:
                call = files.runner(timing.runtime, deployed, example, label, threads)
            forms[label] = Form(call, facts)
        return forms

    def bootstrap(self, own: Sequence[Path], base: Sequence[Path]) -> Interval | None:
        judged = [[_correct(folder) for folder in side] for side in (own, base)]
        indices = [index for side in judged for index, _ in side]
        if any(not np.array_equal(index, indices[0]) for index in indices):
            return None
        correct, baseline = (np.stack([each for _, each in side]) for side in judged)
        return bootstrap_difference(correct, baseline)


CLASSIFIERS = Classifiers()


def _right(train: TrainConfig, judged: EvaluationResult) -> tuple[Any, Any]:
    """Index of each image that judged a network, and whether it was classified rightly; in all images where it is a fold."""
    val = open_data(train.data, train.holdout, train.holdout_seed, train.max_pixels, train.outside_images).val
    index = judged.indices.numpy()
    correct = judged.predictions.numpy() == val.labels[index]
    is_fold = isinstance(parse_holdout(train.holdout), Fold)
    return (val.indices[index] if is_fold and isinstance(val, Subset) else index), correct


def _run(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(batch)


def _correct(folder: Path) -> tuple[Any, Any]:
    with np.load(folder / "correct.npz") as file:
        return file["index"], file["correct"]
