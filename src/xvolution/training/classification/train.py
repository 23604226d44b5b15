"""Training a classifier: from a configuration to a folder with checkpoints, weights and logs."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import replace

import timm.data
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from xvolution.models import ModelSpec, build_model
from xvolution.training.classification.distillation import teacher_of
from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.classification.module import Classification
from xvolution.training.classification.weights import build_from, require_unseen_files
from xvolution.training.config import TrainConfig
from xvolution.training.data import ClassificationData, DataSplits, open_data
from xvolution.training.data.labels import require_labels
from xvolution.training.data.module import default_workers
from xvolution.training.data.reading import SMALL_SIDE
from xvolution.training.data.transforms import Augmentation, Preprocessing
from xvolution.training.errors import InputError
from xvolution.training.fit import TrainResult, announce, fit, resume_from, seed_run
from xvolution.training.held_out import described
from xvolution.training.metadata import provenance
from xvolution.training.schema import READING


def train_classifier(config: TrainConfig, teacher: tuple[nn.Module, ClassifierMetadata] | None = None) -> TrainResult:
    """Train a classifier.

    Args:
        config: the run.
        teacher: the network of its teacher, if it has one.

    Raises:
        InputError: something in the configuration or the data cannot be used.
        RunError: the loss became NaN or infinite, or a file could not be written.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP; a checkpoint was written.
    """
    resume = resume_from(config)
    splits = open_data(config.data, config.holdout, config.holdout_seed, config.max_pixels, config.outside_images)
    seed_run(config.seed)
    spec = model_spec(config, len(splits.train.class_names), splits.survey.grey)
    for part in (splits.train, splits.val):
        require_labels(part, spec.num_classes, config.data)
    if config.recalibrate_norms > len(splits.train):
        raise InputError(
            f"--recalibrate-norms is {config.recalibrate_norms}, but there are only {len(splits.train)} "
            "training images; give at most that number."
        )
    size = image_size(config, splits)
    if config.image_size is None and splits.survey.looks:
        _announce_size(size, splits.survey.sides)
    example = torch.zeros(1, spec.in_chans, size, size)
    weights = config.weights
    require_unseen_files([file for file in (weights, config.teacher) if file is not None], splits)
    model = build_model(spec, config.pretrained, example) if weights is None else build_from(weights, spec, example)
    announce(model, config)
    preprocessing = preprocessing_of(model, size, spec.in_chans)
    kept = {name: value for name, value in spec.kwargs.items() if name not in READING}  # the weights are in the file
    metadata = ClassifierMetadata(
        model=replace(spec, kwargs=kept),
        preprocessing=preprocessing,
        class_names=splits.train.class_names,
        data=config.data,
        provenance={**provenance(config.seed), **described(splits.held_out)},
    )
    taught = None if teacher is None else teacher_of(str(config.teacher), *teacher, metadata)
    module = Classification(model, spec.num_classes, config, metadata.to_dict(), taught)
    return fit(config, module, _data_module(config, splits, preprocessing), metadata, resume, _described(splits, size))


def image_size(config: TrainConfig, splits: DataSplits) -> int:
    """The side length to train at, in pixels; warns if it is chosen from the data and their sizes are mixed."""
    if config.image_size is not None:
        return config.image_size
    size, sides = splits.image_size, splits.survey.sides
    if splits.survey.mixed:
        warnings.warn(
            f"the images of {config.data} are of mixed sizes: shorter sides of {sides[0]} to {sides[-1]} "
            f"pixels in {len(sides)} images. They are resized to {size}; --image-size changes that.",
            stacklevel=2,
        )
    return size


@rank_zero_only
def _announce_size(size: int, sides: Sequence[int]) -> None:
    """Print the image size that was chosen from the data, on the first process only."""
    median = statistics.median_low(sides)
    print(
        f"image size {size}: the median shorter side of {len(sides)} images is {median} pixels; --image-size "
        "changes that"
    )


def _described(splits: DataSplits, size: int) -> dict[str, str]:
    """The facts about the data for the run's announcement."""
    train, val = len(splits.train), len(splits.val)
    return {
        "data": f"{splits.name}: {train} images of {len(splits.train.class_names)} classes for training",
        "evaluation": f"{val} images: {splits.judged_by}",
        "size": f"{size} x {size} pixels",
    }


def model_spec(config: TrainConfig, num_classes: int, grey: bool = False) -> ModelSpec:
    """Describe the network that a configuration asks for.

    Args:
        config: the run.
        num_classes: number of classes in the data.
        grey: whether the images of the data have one channel, for ``in_chans="auto"``.
    """
    return ModelSpec(
        name=config.model,
        num_classes=num_classes,
        in_chans=(1 if grey else 3) if config.in_chans == "auto" else config.in_chans,
        kwargs=dict(config.model_kwargs),
        small_images=config.small_images,
        conversion=None if config.conversion is None else config.conversion.to_dict(),
    )


def preprocessing_of(model: nn.Module, size: int, channels: int) -> Preprocessing:
    """The preprocessing for a timm network: squares of ``size`` pixels, with the mean and deviation of its weights."""
    settings = timm.data.resolve_model_data_config(model)
    mean, std = tuple(settings["mean"]), tuple(settings["std"])
    if channels == 1:  # timm's weights of a grey stem are the sum over the channels
        mean, std = (statistics.mean(mean),), (statistics.mean(std),)
    return Preprocessing(
        image_size=size,
        mean=mean,
        std=std,
        crop_pct=1.0 if size <= SMALL_SIDE else settings["crop_pct"],
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
