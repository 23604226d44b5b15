"""Running any training module: resuming, checkpoints, logs, the trainer."""

from __future__ import annotations

import json
import logging
import random
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.tensorboard.summary import hparams

from xvolution.conversion.attention_share import estimated_shares, hardly_begun
from xvolution.conversion.parameters import new_parameters
from xvolution.conversion.summary import conversion_summary, is_converted
from xvolution.training.announcement import Announcement
from xvolution.training.callbacks import LOG_EVERY, EpochLines, LogEveryEpoch, RunCheckpoints, best_row
from xvolution.training.checkpoint import AtomicCheckpointIO, load_weights, read_checkpoint
from xvolution.training.config import RunConfig
from xvolution.training.errors import InputError
from xvolution.training.files import write_errors, write_text
from xvolution.training.metadata import HEADER, Metadata
from xvolution.training.module import TrainingModule
from xvolution.training.upgrade import upgrade_config

PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}

#: What the steps so far were counted by, or what the state of the run is of: a resumed run keeps it.
_OF_THE_WHOLE_RUN = (
    "optimizer",
    "anneal_to_conv",
    "new_lr_factor",
    "batch_size",
    "accumulate",
    "limit_train_batches",
    "holdout",
    "split_seed",
    "seed",
)
#: What changes nothing that is computed.
_CIRCUMSTANCES = ("output", "resume", "progress", "workers", "checkpoint_every")


@dataclass
class TrainResult:
    """The results of a run.

    Attributes:
        run_dir: the folder.
        checkpoint: `last.ckpt`, to resume from.
        weights: `model.safetensors`, of the best epoch.
        metrics: the history's row of the best epoch.
        history: one row for each epoch: epoch, train_loss, the task's metrics (val_loss, val_top1, val_top5; for a detector
            val_box_ap, val_mask_ap and COCO's other figures; fractions), lr, seconds, skipped_images.
    """

    run_dir: Path
    checkpoint: Path
    weights: Path
    metrics: dict[str, float]
    history: list[dict[str, float]]


def fit(
    config: RunConfig,
    module: TrainingModule,
    data: L.LightningDataModule,
    metadata: Metadata,
    resume: Path | None,
    described: Mapping[str, str],
) -> TrainResult:
    """Train a module and write the results to the run's folder, starting from a checkpoint if one is given.

    Args:
        config: the run.
        module: the module to train.
        data: the data module.
        metadata: metadata of the weights.
        resume: the checkpoint.
        described: facts about the data for the run's announcement, by name.

    Raises:
        InputError: the checkpoint is of another network, or of a run that this configuration cannot continue; or Lightning
            cannot use the machine with these settings.
        RunError: the loss became NaN or infinite, or a file could not be written.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP; a checkpoint was written.
    """
    if resume is not None:
        _require_resumable(resume, module, metadata, config)
    checkpoints = RunCheckpoints(config.run_dir, metadata, config.checkpoint_every)
    _write_config(config)
    with warnings.catch_warnings():
        _quiet_lightning()
        trainer = _trainer(config, checkpoints, described)
        _log_configuration(trainer, config, module.judged_by)
        with checkpoints.heeding_requests(), write_errors(config.run_dir):
            trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    asleep = hardly_begun(estimated_shares(module.judged))
    if asleep is not None:
        say(asleep)
    best = best_row(module.eligible, module.judged_by)
    return TrainResult(config.run_dir, checkpoints.last, checkpoints.weights, best, module.history)


def seed_run(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - timm draws from this one
    torch.manual_seed(seed)


def resume_from(config: RunConfig) -> Path | None:
    """Find the checkpoint to resume from, and refuse to overwrite an old run with a new one."""
    last = config.run_dir / "last.ckpt"
    if config.resume is None:
        if getattr(rank_zero_only, "rank", 0) == 0 and last.exists():
            raise InputError(
                f"{config.run_dir} already holds a run; add --resume last to continue it, or give another --output."
            )
        return None
    path = last if config.resume == "last" else Path(config.resume).expanduser()
    if path.is_dir():
        path = path / "last.ckpt"
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path} to resume from.")
    return path


def _require_resumable(path: Path, module: TrainingModule, metadata: Metadata, config: RunConfig) -> None:
    """Require that this configuration can continue a checkpoint's run, and print the settings that change."""
    checkpoint = read_checkpoint(path)
    stored = type(metadata).from_dict(checkpoint[HEADER])
    if stored.model.name != metadata.model.name:
        raise InputError(
            f"{path} is a checkpoint of {stored.model.name}, not of {metadata.model.name}; give --model {stored.model.name}."
        )
    if stored.class_names != metadata.class_names:
        raise InputError(
            f"{path} was trained on {_listed(stored.class_names)}, but the data have "
            f"{_listed(metadata.class_names)}; give the data of that run."
        )
    before, now = _config_of(path, checkpoint), config.to_dict()
    if before:
        _require_unchanged(path, {**_defaults(config), **before}, now)
    with_average = any(name.startswith("ema.") for name in checkpoint["state_dict"])
    if with_average != (config.ema_decay is not None):
        kept, given = ("a", "is left out") if with_average else ("no", f"is {config.ema_decay}")
        raise InputError(
            f"{path} holds {kept} moving average, but --ema-decay {given}; this setting cannot change within "
            "a run. Give its first value, or start a new run with another --output."
        )
    done = len(checkpoint.get("history", ()))
    if config.epochs < done:
        raise InputError(
            f"{path} has already trained {done} epochs, but --epochs is {config.epochs}; give {done} or more."
        )
    load_weights(module, checkpoint["state_dict"], f"{path} ({stored.model.name})")
    changed = [name for name in now if name in before and now[name] != before[name] and name not in _CIRCUMSTANCES]
    if changed:
        said = ", ".join(f"{_flag(name)} {now[name]} (was {before[name]})" for name in changed)
        say(f"continuing after epoch {done} with {said}")


def _config_of(path: Path, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a checkpoint's training; checkpoints of older versions have it in a file beside them."""
    values = checkpoint.get("config")
    if values is None:
        with suppress(OSError, ValueError):
            values = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    return upgrade_config(values) if isinstance(values, dict) else {}


def _require_unchanged(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [name for name in _OF_THE_WHOLE_RUN if name in now and before[name] != now[name]]
    if changed:
        name = changed[0]
        had = f"with {_flag(name)} {before[name]}" if before[name] is not None else f"without {_flag(name)}"
        raise InputError(
            f"{path} was trained {had}, but now it is {now[name]}; this setting cannot change within a run. "
            "Give its first value, or start a new run with another --output."
        )


def _defaults(config: RunConfig) -> dict[str, Any]:
    """The values of versions that did not have these settings yet."""
    return {name: getattr(type(config), name, None) for name in _OF_THE_WHOLE_RUN}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _listed(names: list[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


@rank_zero_only
def say(sentence: str) -> None:
    """Print a sentence, on the first process only."""
    print(sentence, flush=True)


@rank_zero_only
def _log_configuration(trainer: L.Trainer, config: RunConfig, judged_by: str) -> None:
    """Log the configuration to TensorBoard's table of runs; training logs the metric's values."""
    kept = (int, float, str)
    plain = {name: value if type(value) in kept else json.dumps(value) for name, value in config.to_dict().items()}
    tensorboard: Any = trainer.loggers[0]
    writer = tensorboard.experiment.file_writer
    for summary in hparams(plain, {judged_by: 0.0}):
        writer.add_summary(summary)


def _trainer(config: RunConfig, checkpoints: RunCheckpoints, described: Mapping[str, str]) -> L.Trainer:
    callbacks: list[Callback] = [checkpoints, LogEveryEpoch()]
    progress = config.progress
    if progress == "auto":
        progress = "bar" if sys.stdout.isatty() else "lines"
    if progress == "bar":
        callbacks.append(RichProgressBar(leave=False))
    if progress != "off":
        callbacks += [Announcement(config, described), EpochLines()]
    loggers: list[Logger] = [
        TensorBoardLogger(config.run_dir, name="tensorboard", version="", default_hp_metric=False),
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
            log_every_n_steps=LOG_EVERY,
        )
    except (MisconfigurationException, ValueError) as error:
        raise InputError(
            f"Lightning cannot use --accelerator {config.accelerator} --devices {config.devices} --strategy "
            f"{config.strategy} --precision {config.precision} here: {error}"
        ) from error


@rank_zero_only
def announce(model: nn.Module, config: RunConfig) -> None:
    """Print the conversion and the learning rate of new parameters, unless progress is off; on the first process only."""
    if config.progress == "off":
        return
    if is_converted(model):
        print(conversion_summary(model), flush=True)
    if config.new_lr_factor != 1:
        new = sum(parameter.numel() for parameter in new_parameters(model).values())
        print(
            f"{new:,} new parameters train with {config.new_lr_factor} times the learning rate of the others",
            flush=True,
        )


@rank_zero_only
def _write_config(config: RunConfig) -> None:
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
