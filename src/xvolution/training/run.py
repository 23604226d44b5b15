"""`train`: from a configuration to a folder with checkpoints, weights and logs."""

from __future__ import annotations

import json
import logging
import random
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import timm.data
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from xvolution.models import ModelSpec, build_model
from xvolution.training.callbacks import EpochLines, RunCheckpoints, best_row
from xvolution.training.checkpoint import HEADER, AtomicCheckpointIO, load_weights, read_checkpoint
from xvolution.training.classification import Classification
from xvolution.training.config import TrainConfig
from xvolution.training.data import ClassificationData, DataSplits, open_data
from xvolution.training.data.labels import require_labels
from xvolution.training.data.module import default_workers
from xvolution.training.data.transforms import SMALL, Augmentation, Preprocessing
from xvolution.training.errors import InputError
from xvolution.training.files import write_errors, write_text
from xvolution.training.metadata import Metadata, provenance

PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


@dataclass
class TrainResult:
    """What a run left.

    Attributes:
        run_dir: the folder.
        checkpoint: `last.ckpt`, to resume from.
        weights: `model.safetensors`, of the best epoch.
        metrics: the history's row of the best epoch.
        history: one row for each epoch: epoch, train_loss, val_loss, val_top1, val_top5 (fractions), lr, seconds,
            skipped_images.
    """

    run_dir: Path
    checkpoint: Path
    weights: Path
    metrics: dict[str, float]
    history: list[dict[str, float]]


def train(config: TrainConfig) -> TrainResult:
    """Train a classifier.

    Raises:
        InputError: something in the configuration or the data cannot be used.
        RunError: the loss became no number, or a file could not be written.
        Interrupted: the user pressed Ctrl-C; a checkpoint was written.
    """
    resume = _resume_from(config)
    splits = open_data(config.data, config.holdout, config.holdout_seed)
    seed_run(config.seed)
    spec = model_spec(config, len(splits.train.class_names))
    for part in (splits.train, splits.val):
        require_labels(part, spec.num_classes, config.data)
    size = config.image_size or splits.image_size
    model = build_model(spec, config.pretrained, torch.zeros(1, spec.in_chans, size, size))
    _announce(model)
    preprocessing = _preprocessing(model, size)
    metadata = Metadata(spec, preprocessing, splits.train.class_names, config.data, provenance=provenance(config.seed))
    module = Classification(model, spec.num_classes, config, metadata.to_dict())
    if resume is not None:
        _require_same_network(resume, module, spec)
    data = _data_module(config, splits, preprocessing)
    checkpoints = RunCheckpoints(config.run_dir, metadata, config.checkpoint_every)
    _write_config(config)
    with warnings.catch_warnings():
        _quiet_lightning()
        trainer = _trainer(config, checkpoints)
        with write_errors(config.run_dir):
            trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return TrainResult(config.run_dir, checkpoints.last, checkpoints.weights, best_row(module.history), module.history)


def seed_run(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - timm draws from this one
    torch.manual_seed(seed)


def model_spec(config: TrainConfig, num_classes: int) -> ModelSpec:
    """Describe the network that a configuration asks for."""
    return ModelSpec(
        name=config.model,
        num_classes=num_classes,
        kwargs=dict(config.model_kwargs),
        small_images=config.small_images,
        conversion=None if config.conversion is None else config.conversion.to_dict(),
    )


def _resume_from(config: TrainConfig) -> Path | None:
    """Find the checkpoint to go on from, and see that a new run does not overwrite an old one."""
    last = config.run_dir / "last.ckpt"
    if config.resume is None:
        if getattr(rank_zero_only, "rank", 0) == 0 and last.exists():
            raise InputError(
                f"{config.run_dir} holds a run; add --resume last to go on with it or give another --output."
            )
        return None
    path = last if config.resume == "last" else Path(config.resume).expanduser()
    if path.is_dir():
        path = path / "last.ckpt"
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path} to resume from.")
    return path


def _require_same_network(path: Path, module: Classification, spec: ModelSpec) -> None:
    checkpoint = read_checkpoint(path)
    stored = ModelSpec.from_dict(checkpoint[HEADER]["model"])
    if stored.name != spec.name:
        raise InputError(f"{path} is a checkpoint of {stored.name}, not of {spec.name}; give --model {stored.name}.")
    load_weights(module, checkpoint["state_dict"], f"{path} ({stored.name})")


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
        splits, preprocessing, augmentation, config.batch_size, config.seed, workers, config.on_bad_image
    )


def _trainer(config: TrainConfig, checkpoints: RunCheckpoints) -> L.Trainer:
    callbacks: list[Callback] = [checkpoints]
    progress = config.progress
    if progress == "auto":
        progress = "bar" if sys.stdout.isatty() else "lines"
    if progress == "bar":
        callbacks.append(RichProgressBar(leave=False))
    if progress != "off":
        callbacks.append(EpochLines())
    loggers: list[Logger] = [
        TensorBoardLogger(config.run_dir, name="tensorboard", version=""),
        CSVLogger(config.run_dir, name="csv"),
    ]
    try:
        return L.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=config.strategy,
            precision=PRECISIONS[config.precision],
            max_epochs=config.epochs,
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.clip_grad,
            limit_train_batches=config.limit_train_batches,
            limit_val_batches=config.limit_val_batches,
            deterministic=config.deterministic or None,
            callbacks=callbacks,
            logger=loggers,
            plugins=[AtomicCheckpointIO()],
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_progress_bar=progress == "bar",
            enable_model_summary=False,
            enable_checkpointing=True,
            log_every_n_steps=10,
        )
    except (MisconfigurationException, ValueError) as error:
        raise InputError(
            f"Lightning cannot use --accelerator {config.accelerator} --devices {config.devices} --strategy "
            f"{config.strategy} --precision {config.precision} here: {error}"
        ) from error


@rank_zero_only
def _announce(model: nn.Module) -> None:
    if hasattr(model, "summary"):
        print(model.summary, flush=True)


@rank_zero_only
def _write_config(config: TrainConfig) -> None:
    write_text(config.run_dir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")


def _quiet_lightning() -> None:
    """Silence advice that does not apply: the loaders are resumable and their worker counts are chosen."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for advice in (
        "dataloader is not resumable",
        "does not have many workers",
        "logging interval",
        "in eval mode at the start of training",
        "isinstance.treespec, LeafSpec",
        "Experiment logs directory .* exists",
    ):
        warnings.filterwarnings("ignore", message=f"(?s).*{advice}")
