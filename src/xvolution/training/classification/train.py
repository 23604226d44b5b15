"""Training a classifier: from a configuration to a folder with checkpoints, weights and logs."""

from __future__ import annotations

from dataclasses import replace

import timm.data
import torch
from torch import nn

from xvolution.models import ModelSpec, build_model
from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.classification.module import Classification
from xvolution.training.config import TrainConfig
from xvolution.training.data import ClassificationData, DataSplits, open_data
from xvolution.training.data.labels import require_labels
from xvolution.training.data.module import default_workers
from xvolution.training.data.transforms import SMALL, Augmentation, Preprocessing
from xvolution.training.errors import InputError
from xvolution.training.fit import TrainResult, announce, fit, resume_from, seed_run
from xvolution.training.metadata import provenance
from xvolution.training.schema import READING


def train_classifier(config: TrainConfig) -> TrainResult:
    """Train a classifier.

    Raises:
        InputError: something in the configuration or the data cannot be used.
        RunError: the loss became no number, or a file could not be written.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP; a checkpoint was written.
    """
    resume = resume_from(config)
    splits = open_data(config.data, config.holdout, config.holdout_seed)
    seed_run(config.seed)
    spec = model_spec(config, len(splits.train.class_names))
    for part in (splits.train, splits.val):
        require_labels(part, spec.num_classes, config.data)
    if config.recalibrate_norms > len(splits.train):
        raise InputError(
            f"--recalibrate-norms is {config.recalibrate_norms}, and there are {len(splits.train)} training images; give at most "
            "as many."
        )
    size = config.image_size or splits.image_size
    model = build_model(spec, config.pretrained, torch.zeros(1, spec.in_chans, size, size))
    announce(model)
    preprocessing = _preprocessing(model, size)
    kept = {name: value for name, value in spec.kwargs.items() if name not in READING}  # the weights are in the file
    metadata = ClassifierMetadata(
        model=replace(spec, kwargs=kept),
        preprocessing=preprocessing,
        class_names=splits.train.class_names,
        data=config.data,
        provenance=provenance(config.seed),
    )
    module = Classification(model, spec.num_classes, config, metadata.to_dict())
    return fit(config, module, _data_module(config, splits, preprocessing), metadata, resume)


def model_spec(config: TrainConfig, num_classes: int) -> ModelSpec:
    """Describe the network that a configuration asks for."""
    return ModelSpec(
        name=config.model,
        num_classes=num_classes,
        kwargs=dict(config.model_kwargs),
        small_images=config.small_images,
        conversion=None if config.conversion is None else config.conversion.to_dict(),
    )


def _preprocessing(model: nn.Module, size: int) -> Preprocessing:
    settings = timm.data.resolve_model_data_config(model)
    return Preprocessing(
        image_size=size,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        crop_pct=1.0 if size <= SMALL else settings["crop_pct"],
        interpolation=settings["interpolation"],
    )


def _data_module(config: TrainConfig, splits: DataSplits, preprocessing: Preprocessing) -> ClassificationData:
    hflip = config.hflip if config.hflip is not None else 0.5 * splits.train.flips
    augmentation = Augmentation(
        config.crop, config.crop_scale, hflip, config.auto_augment, config.color_jitter, config.random_erase
    )
    workers = config.workers if config.workers is not None else default_workers(splits)
    return ClassificationData(
        splits,
        preprocessing,
        augmentation,
        config.batch_size,
        config.seed,
        workers,
        config.on_bad_image,
        config.in_memory,
    )
