"""Training a detector: from a configuration to a folder with checkpoints, weights and logs."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from xvolution.models.detection import DetectorSpec, build_detector
from xvolution.training.checkpoint import read_tensors
from xvolution.training.coco.catalog import open_detection
from xvolution.training.coco.data import DetectionData
from xvolution.training.coco.source import DetectionSplits
from xvolution.training.config import DetectionConfig
from xvolution.training.detection.metadata import DetectorMetadata
from xvolution.training.detection.module import Detection
from xvolution.training.errors import InputError
from xvolution.training.fit import TrainResult, announce, fit, resume_from, seed_run
from xvolution.training.held_out import described
from xvolution.training.metadata import provenance
from xvolution.training.schema import ClassifierFile, require_described
from xvolution.training.upgrade import upgrade

#: Sizes between the smallest and the largest of scale jitter.
_SIZES = 5


def train_detector(config: DetectionConfig) -> TrainResult:
    """Train a detector.

    Raises:
        InputError: something in the configuration or the data cannot be used.
        ModelError: no such detector can be built.
        RunError: the loss became NaN or infinite, or a file could not be written.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP; a checkpoint was written.
    """
    resume = resume_from(config)
    if resume is None:
        require_norms(config)
    splits = opened(config)
    splits.train.require_objects()
    splits.val.require_objects()
    seed_run(config.seed)
    _announce_start(config)
    model, spec = new_detector(config, len(splits.train.class_names))
    announce(model, config)
    metadata = DetectorMetadata(
        model=spec,
        class_names=splits.train.class_names,
        category_ids=splits.train.category_ids,
        data=config.data,
        provenance={**provenance(config.seed), **described(splits.held_out)},
    )
    _jitter_scale(model, config)
    module = Detection(model, splits.val, config, metadata.to_dict())
    data = DetectionData(
        splits,
        config.batch_size,
        0.5 if config.hflip is None else config.hflip,
        config.min_size if config.large_scale_jitter else None,
        config.aspect_groups,
        config.seed,
        max(0, min(8, (os.cpu_count() or 1) - 1)) if config.workers is None else config.workers,
        config.on_bad_image,
    )
    said = {
        "data": f"{splits.name}: {len(splits.train)} images, {len(splits.train.class_names)} classes of objects",
        "evaluation": f"{len(splits.val)} images: {splits.judged_by}",
        "size": f"shorter side {config.min_size} pixels, longer side at most {config.max_size}",
    }
    return fit(config, module, data, metadata, resume, said)


def require_norms(config: DetectionConfig) -> None:
    """Require that frozen norms have statistics.

    Raises:
        InputError: they have none.
    """
    if config.norm == "frozen" and not config.begins_trained:
        raise InputError(
            "--norm frozen keeps the statistics of a classifier's norms, but the backbone starts from "
            "random weights and has no statistics; add --pretrained or --backbone-weights, or leave --norm "
            "out."
        )


@rank_zero_only
def _announce_start(config: DetectionConfig) -> None:
    """Print how a backbone with random weights is trained, on the first process only."""
    if config.begins_trained:
        return
    norms = "its norms are trained (--norm batch)" if config.norm is None else f"--norm is {config.norm}"
    kept = 5 - config.trained_layers
    layers = (
        "all its layers are trained" if not kept else f"{kept} of its 5 layers keep random weights (--trainable-layers)"
    )
    print(
        f"the backbone starts from random weights: {norms}, {layers}; --pretrained or --backbone-weights "
        "starts from a classifier's weights and freezes its norms",
        flush=True,
    )


def opened(config: DetectionConfig) -> DetectionSplits:
    """The data of a configuration; see `open_detection`."""
    return open_detection(
        config.data,
        config.task == "segment",
        config.holdout,
        config.holdout_seed,
        config.on_bad_image,
        config.max_pixels,
        config.outside_images,
    )


def new_detector(config: DetectionConfig, categories: int) -> tuple[nn.Module, DetectorSpec]:
    """Build the detector of a configuration, on the CPU, in training mode.

    Args:
        config: the run.
        categories: number of categories in the data, without background.

    Raises:
        InputError: the backbone's weights cannot be read.
        ModelError: no such detector can be built.
    """
    weights, own = (None, {}) if config.backbone_weights is None else _backbone_weights(config.backbone_weights)
    spec = detector_spec(config, categories, own)
    return build_detector(spec, weights, config.pretrained, config.backbone_weights or ""), spec


def detector_spec(
    config: DetectionConfig, categories: int, normalization: dict[str, Any] | None = None
) -> DetectorSpec:
    """Describe the detector of a configuration.

    Args:
        config: the run.
        categories: number of categories in the data, without background.
        normalization: ``image_mean`` and ``image_std`` that the backbone was trained with.
    """
    assert config.architecture is not None
    return DetectorSpec(
        architecture=config.architecture,
        version=config.version,
        backbone=config.backbone,
        num_classes=categories + 1,
        norm=config.backbone_norm,
        min_size=config.min_size,
        max_size=config.max_size,
        trainable_layers=config.trained_layers,
        kwargs={**(normalization or {}), **config.model_kwargs},
        parts=tuple(config.parts),
        conversion=None if config.conversion is None else config.conversion.to_dict(),
    )


def _backbone_weights(path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, and the mean and deviation of its images if the file has them."""
    tensors, header = read_tensors(path)
    if header is None or "preprocessing" not in (described := upgrade(header)):
        return tensors, {}
    require_described(described, ClassifierFile)
    return tensors, {f"image_{name}": described["preprocessing"][name] for name in ("mean", "std")}


def _jitter_scale(model: Any, config: DetectionConfig) -> None:
    """Make torchvision's resizing draw the shorter side at random in training; evaluation uses the last size."""
    low, high = config.scale_jitter
    if low < high:
        sizes = torch.linspace(low, high, _SIZES) * config.min_size
        model.transform.min_size = (*(round(float(size)) for size in sizes), config.min_size)
