"""`train`, `load_model`, `load_predictor`, `evaluate`, `deploy` and `predict`: one function each for every task."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from xvolution.conversion.attention_share import estimated_shares, hardly_begun
from xvolution.deploy.measure import TORCH
from xvolution.training.config import RunConfig
from xvolution.training.deployment import DeployResult, DeploySettings, runtime_of
from xvolution.training.errors import InputError
from xvolution.training.evaluation import Evaluation, EvaluationSettings, pick_device
from xvolution.training.fit import TrainResult
from xvolution.training.held_out import seed_of
from xvolution.training.lock import locked
from xvolution.training.metadata import Metadata
from xvolution.training.predictor import Predictions, Predictor, PredictSettings, picture_files
from xvolution.training.tasks import own_options, task_of, task_of_file


def train(config: RunConfig) -> TrainResult:
    """Train the network of a configuration: a classifier for `TrainConfig`, a detector for `DetectionConfig`.

    Raises:
        InputError: something in the configuration or the data cannot be used.
        ModelError: the network cannot be built.
        RunError: the loss became NaN or infinite, a file could not be written, or another process writes to the run's folder.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP; a checkpoint was written.
    """
    first = getattr(rank_zero_only, "rank", 0) == 0  # the others of a distributed run write nothing
    with locked(config.run_dir) if first else nullcontext():
        return task_of(config).train(config)


def load_model(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", *, checksum: bool = True
) -> tuple[nn.Module, Metadata]:
    """Build the network that a file describes, in its training or its deployed form, in eval mode, with the file's weights.

    Args:
        path: a file of this library: .ckpt, .safetensors (training or deployed form), .onnx, .xml, .pt2, .tflite or .mlpackage.
        device: where to put the network; exported files run on the CPU.
        checksum: check the file against the checksum stored in it, if it has one.

    Raises:
        InputError: there is no such file, it is damaged, or its weights do not fit the network that it describes.
    """
    return task_of_file(path).load(path, device, checksum)


def evaluate(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    split: str = "val",
    holdout: float | str | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    on_bad_image: str = "error",
    limit_batches: int | None = None,
    max_pixels: int | None = None,
    outside_images: bool = False,
    checksum: bool = True,
    **options: Any,
) -> Evaluation:
    """Evaluate a network: a classifier by top-1, top-5 and loss, a detector by COCO's metrics.

    Args:
        checkpoint: a file of this library: .ckpt, .safetensors (training or deployed form), .onnx, .xml, .pt2, .tflite or
        .mlpackage.
        data: as in training; by default the data that the network was trained on.
        split: train, val or test.
        holdout: hold out this fraction of the training part as ``val``, or a fold such as ``2/5``, as in training.
        seed: seed that chooses the held-out images; by default that of the network's training if it held out images of these
            data.
        batch_size: images in a batch; by default 64, of a detector 1.
        workers: processes that load images; by default none for digits and detectors, else one for each core but one, at most 8.
        device: cpu, cuda, cuda:1, mps, or auto for a GPU if there is one. Exported files run on the CPU.
        on_bad_image: "error" stops at an unreadable image, "skip" leaves it out.
        limit_batches: largest number of batches to evaluate on.
        max_pixels: largest number of pixels in an image; Pillow's own limit if None.
        outside_images: also read images outside the data folder that annotations or tables name.
        checksum: check the checkpoint against the checksum stored in it, if it has one.
        **options: of a classifier ``image_size`` (side length in pixels; by default that of training) and ``predictions`` (CSV
            file for the prediction of every image); of a detector ``results`` (JSON file for the detections in COCO's submission
            format), ``page`` (HTML file with pictures) and ``pictures`` (how many; 24 by default).

    Returns:
        `EvaluationResult` of a classifier, `DetectionEvaluation` of a detector.

    Raises:
        InputError: the checkpoint, the data or an option cannot be used, they do not fit each other, or the network learned
            from images of ``val``.
        RunError: a file cannot be written.
    """
    task = task_of_file(checkpoint)
    own = own_options(task, "evaluate", options)
    batch_size = task.evaluation_batch if batch_size is None else batch_size
    place = pick_device(device)
    model, metadata = task.load(checkpoint, place, checksum)
    judged_by = metadata.data if data is None else data
    settings = EvaluationSettings(
        judged_by,
        split,
        holdout,
        seed_of(metadata, judged_by, seed),
        batch_size,
        workers,
        on_bad_image,
        limit_batches,
        max_pixels,
        outside_images,
    )
    return task.evaluate(model, metadata, settings, **own)


def deploy(
    checkpoint: str | os.PathLike[str],
    outputs: Sequence[str | os.PathLike[str]],
    *,
    layout: str | Mapping[str, str] = "auto",
    fold_norms: bool = False,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
    checksum: bool = True,
    **options: Any,
) -> DeployResult[Any]:
    """Re-parameterize a checkpoint and write it.

    Args:
        checkpoint: a .ckpt or .safetensors file in training form.
        outputs: files; .safetensors holds the deployed form's weights; .onnx, .xml and, of a classifier, .pt2, .ncnn.param,
            .mnn, .pte, .tflite and .tensorrt.onnx are exports that have been run and compared; .mlpackage is run on macOS
            alone, and read back elsewhere.
        layout: auto, which times each distinct operator in the runtime of each output (.safetensors: torch) and may choose
            other layouts for other outputs; or one that every operator has, such as single or split; or one for each by name.
        fold_norms: also fold the other pairs of convolution and norm.
        threads: number of CPU threads while layouts are timed; as many as torch uses if None.
        progress: called with a line for each distinct operator and before each file is written.
        checksum: check the checkpoint against the checksum stored in it, if it has one.
        **options: of a classifier ``image_size`` (side length of the example input; by default that of training),
            ``batch_size`` (images in the example, which ``auto`` measures; 1 by default) and ``fixed_size`` (fix batch and image
            size of exported files to the example's); of a detector ``image`` (file of the example, whose detections are compared;
            noise by default) and ``max_pixels`` (largest number of its pixels).

    Returns:
        `ClassifierDeployment` of a classifier, `DetectorDeployment` of a detector.

    Raises:
        InputError: the checkpoint cannot be read, is already deployed, or an ending or an option cannot be used.
        RunError: the deployed form differs from the training form, or a file cannot be written.
    """
    task = task_of_file(checkpoint)
    own = own_options(task, "deploy", options)
    paths = [Path(output) for output in outputs]
    for path in paths:
        if not path.name.endswith(task.endings):
            raise InputError(
                f"{path} ends with {path.suffix or 'nothing'}; the endings are {', '.join(task.endings)} for "
                f"{task.metadata.noun}."
            )
    model, metadata = task.load(checkpoint, checksum=checksum)
    if metadata.form == "deployed":
        raise InputError(f"{checkpoint} is already in deployed form; give the checkpoint in training form.")
    runtimes = tuple(dict.fromkeys(map(runtime_of, paths))) or (TORCH,)
    settings = DeploySettings(layout, fold_norms, runtimes, threads, progress)
    result = task.deploy(model, metadata, settings, **own)
    result.asleep = hardly_begun(estimated_shares(model))
    for path in paths:
        if progress is not None:
            progress(f"writing {path}, running it, comparing its outputs")
        result.write(path)
    return result


def predict(
    checkpoint: str | os.PathLike[str],
    pictures: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    device: str = "auto",
    batch_size: int = 32,
    on_bad_image: str = "error",
    max_pixels: int | None = None,
    checksum: bool = True,
    **options: Any,
) -> Predictions:
    """Run a network on picture files: return the most probable classes of each, or draw the objects on it.

    Args:
        checkpoint: .ckpt, .safetensors (training or deployed form), .onnx, .xml, .pt2, .tflite or .mlpackage.
        pictures: files, folders (with the folders in them), or patterns such as ``*.jpg``.
        device: cpu, cuda, cuda:1, mps, or auto for a GPU if there is one. Exported files run on the CPU.
        batch_size: number of pictures in a batch, for classifiers.
        on_bad_image: "error" stops at an unreadable picture, "skip" leaves it out.
        max_pixels: largest number of pixels in a picture; Pillow's own limit if None.
        checksum: check the checkpoint against the checksum stored in it, if it has one.
        **options: of a classifier ``top`` (how many classes of each picture; 5 by default), ``csv``, ``json`` and ``page`` (files
            to write) and ``pictures_on_page`` (the first ones; 100 by default); of a detector ``output`` (folder for the drawn
            pictures and for ``results.json``, COCO's results with the position of the picture as image_id and its path as
            file_name; ``predictions`` by default) and ``score_threshold`` (lowest score that is kept; 0.5 by default).

    Returns:
        `ClassifierPredictions` of a classifier, `DetectorPredictions` of a detector.

    Raises:
        InputError: the checkpoint, a picture or an option cannot be used.
        RunError: a file cannot be written.
    """
    settings = PredictSettings(on_bad_image, batch_size)
    given = [pictures] if isinstance(pictures, str | os.PathLike) else pictures
    paths = picture_files(given)
    task = task_of_file(checkpoint)
    own = own_options(task, "predict", options)
    predictor = load_predictor(checkpoint, device, max_pixels=max_pixels, checksum=checksum)
    return task.predict(predictor, paths, settings, **own)


def load_predictor(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    max_pixels: int | None = None,
    checksum: bool = True,
) -> Predictor[Any]:
    """See `xvolution.load`."""
    task = task_of_file(path)
    model, metadata = task.load(path, pick_device(str(device)), checksum)
    return task.predictor(model, metadata, max_pixels)
