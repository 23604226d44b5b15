"""Everything a training run is decided by, as a dataclass for each task; its fields are the flags of `xvolution train`."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xvolution.training.errors import InputError
from xvolution.training.flags.operators import operator_names
from xvolution.training.fold import parse_holdout
from xvolution.training.upgrade import upgrade_config

if TYPE_CHECKING:
    from typing_extensions import Self

    from xvolution.conversion.config import Conversion

#: Of images, in pixels; a batch of larger ones fits no memory.
SMALLEST_SIDE, LARGEST_SIDE = 8, 10_000
#: Of the generators.
LARGEST_SEED = 2**63 - 1
#: Each takes file descriptors of the process that trains; there are as many again for the images that judge.
MOST_WORKERS = 128


@dataclass
class RunConfig(ABC):
    """What a run of any task is decided by: the data, the operator, the schedule, the machine.

    Args:
        data: what is trained on.
        operator: what takes the place of convolutions: xvolution, an attention branch or another operator by its name; conv
            leaves the network as it is.
        operator_options: options of the operator, as JSON; each has a flag of its own too.
        stages: stages of the network in which convolutions are replaced, counted from 1.
        kernel_sizes: side lengths of the kernels that are replaced; by default those larger than one pixel.
        names: shell patterns of the modules that are replaced, such as layer3.*.conv2.
        at_projections: replace the 1x1 convolution behind a depthwise one in its place, where attention mixes channels.
        holdout: judge by this fraction of the training part in the place of the validation part; or by a fold of a classifier's
            images, such as 2/5: the second of five parts of training and validation part together.
        on_bad_image: what happens at an unreadable image: error ends the run, skip goes on without it.
        max_pixels: the most that an image may have; by default Pillow's limit of 178956970, against files that fill the memory.
        outside_images: read images that annotations or tables name outside of the data's folder too.
        workers: processes that load images; 0 loads in the training process. By default as many as there are cores but
            one, at most 8, and none for digits.
        limit_train_batches: batches of an epoch, at most.
        limit_val_batches: batches of an evaluation, at most.
        hflip: probability of mirroring; by default 0.5 (0 for digits).
        epochs: passes over the training part.
        batch_size: images in a batch, for each process.
        accumulate: batches whose gradients make one step.
        optimizer: timm's name of an optimizer, such as sgd, adamw, lamb.
        lr: learning rate at its peak.
        new_lr_factor: learning rate of the parameters that conversion adds, as a multiple of that of the others.
        momentum: momentum of the optimizers that have one, such as sgd.
        weight_decay: decay of the weights; biases and norms get none.
        schedule: timm's name of a schedule, such as cosine, step, multistep, linear.
        decay_epochs: epochs between the drops of the step schedule.
        decay_milestones: epochs before the drops of the multistep schedule.
        decay_rate: factor of the drops of the step and multistep schedules.
        warmup_epochs: epochs of linear warm-up; fractions are allowed.
        min_lr: learning rate at the end.
        clip_grad: largest norm of the gradient.
        ema_decay: decay of an exponential moving average of the weights, which is then what is judged and exported.
        precision: precision of the arithmetic: 32, or bf16 or 16 for mixed precision.
        accelerator: what trains: cpu, gpu, mps or another of Lightning; auto takes a GPU where there is one.
        devices: how many devices train, a list of their indices, or auto.
        num_nodes: how many machines train.
        strategy: how several devices train, by its name in Lightning, such as ddp.
        seed: seed of weights, order, augmentation and dropout.
        split_seed: seed of the part that is held out where the data have no part of their own to judge by; by default
            the run's seed.
        deterministic: use deterministic algorithms only; resumed GPU runs need it to end with the same bits.
        output: folder of the run; by default runs/<data>-<model>-<operator>.
        resume: go on from last (the checkpoint in the output folder) or from a checkpoint's path.
        checkpoint_every: write a checkpoint every so many steps, beside the one after each epoch.
        progress: what is printed: a bar, lines (one for each epoch), or nothing (off); auto draws a bar on a terminal.
    """

    data: str = "."
    operator: str = "xvolution"
    operator_options: dict[str, Any] = field(default_factory=dict)
    stages: list[int] | None = field(default_factory=lambda: [3])
    kernel_sizes: list[int] | None = None
    names: list[str] | None = None
    at_projections: bool = True
    holdout: float | str | None = None
    on_bad_image: Literal["error", "skip"] = "error"
    max_pixels: int | None = None
    outside_images: bool = False
    workers: int | None = None
    limit_train_batches: int | None = None
    limit_val_batches: int | None = None
    hflip: float | None = None
    epochs: int = 10
    batch_size: int = 64
    accumulate: int = 1
    optimizer: str = "sgd"
    lr: float = 0.05
    new_lr_factor: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    decay_epochs: float = 30.0
    decay_milestones: list[int] = field(default_factory=lambda: [8, 11])
    decay_rate: float = 0.1
    warmup_epochs: float = 0.0
    min_lr: float = 0.0
    clip_grad: float | None = None
    ema_decay: float | None = None
    precision: Literal["32", "bf16", "16"] = "32"
    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    seed: int = 0
    split_seed: int | None = None
    deterministic: bool = False
    output: str | None = None
    resume: str | None = None
    checkpoint_every: int | None = None
    progress: Literal["auto", "bar", "lines", "off"] = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "num_nodes"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("limit_train_batches", "limit_val_batches", "checkpoint_every", "max_pixels"):
            require(self, name, (value := getattr(self, name)) is None or value >= 1, "at least 1, or left out")
        for name in ("lr", "new_lr_factor", "decay_epochs", "decay_rate"):
            require(self, name, 0 < getattr(self, name) < math.inf, "more than 0")
        for name in ("weight_decay", "min_lr"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "at least 0")
        for name in ("hflip", "momentum"):
            require(self, name, (value := getattr(self, name)) is None or 0 <= value <= 1, "from 0 to 1")
        require(self, "ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "between 0 and 1")
        parse_holdout(self.holdout)
        for name in ("seed", "split_seed"):
            allowed = f"from 0 to {LARGEST_SEED}"
            require(self, name, (value := getattr(self, name)) is None or 0 <= value <= LARGEST_SEED, allowed)
        require(self, "clip_grad", self.clip_grad is None or 0 < self.clip_grad < math.inf, "more than 0, or left out")
        allowed = f"at least 0 and less than epochs ({self.epochs})"
        require(self, "warmup_epochs", 0 <= self.warmup_epochs < max(self.epochs, 1), allowed)
        require(self, "workers", self.workers is None or 0 <= self.workers <= MOST_WORKERS, f"from 0 to {MOST_WORKERS}")
        require(self, "operator", self.operator in operator_names(), f"one of {', '.join(operator_names())}")

    @property
    def conversion(self) -> Conversion | None:
        """What takes the place of convolutions; None for the plain network.

        Raises:
            InputError: options that the operator does not have.
        """
        if self.operator == "conv" and not self.operator_options:
            return None
        from xvolution.conversion.config import Conversion, Placement
        from xvolution.conversion.register import operator_config

        try:
            where = Placement.of(self.stages, self.kernel_sizes, self.names, self.at_projections)
            return Conversion(operator_config(self.operator, self.operator_options), where)
        except (TypeError, ValueError) as error:
            raise InputError(f"--operator {self.operator} {self.operator_options or ''}: {error}.") from error

    @property
    def holdout_seed(self) -> int:
        """The seed of the held-out part."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    @abstractmethod
    def task(self) -> str:
        """The task's name in the register. A field of every configuration but `TrainConfig`: what is stored without is its."""

    @property
    @abstractmethod
    def network(self) -> str:
        """What is trained, in words."""

    @property
    def begins_with(self) -> str | None:
        """The weights that the network begins with, in words; None where they are random."""
        return None

    @property
    @abstractmethod
    def trained(self) -> str:
        """What is trained on what, as a folder's name."""

    @property
    def run_dir(self) -> Path:
        """The folder that the run writes to."""
        if self.output is not None:
            return Path(self.output).expanduser()
        return Path("runs") / f"{self.trained}-{self.operator}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`, of an older version too; a field that is missing has its default."""
        return cls(**upgrade_config(values))


def require(config: RunConfig, name: str, holds: bool, allowed: str) -> None:
    """Raise ``InputError`` with what was given and what is allowed, unless it holds."""
    if not holds:
        raise InputError(f"--{name.replace('_', '-')} is {getattr(config, name)}; it must be {allowed}.")


@dataclass
class TrainConfig(RunConfig):
    """A training of an image classifier.

    Args:
        model: the network, by its name in timm, such as resnet18 or convnext_atto.
        model_kwargs: further keyword arguments of timm.create_model, as JSON.
        pretrained: begin with timm's pretrained weights.
        weights: begin with the weights of this file: of the same network, plain or converted in the same way, by this library or
            in timm's names (.safetensors). The classifier on top is new where the number of classes differs.
        small_images: give a ResNet a 3x3 stem of stride 1 without max-pooling, for images up to 64 pixels.
        data: the images: digits, a folder of class folders, parquet files or a folder of them, a torchvision data set
            (torchvision:CIFAR10) or a Hugging Face data set.
        image_size: side length in pixels; by default that of the median image where it is small, else 224.
        in_chans: channels of the images: 3 for colour, 1 for grey, auto for what the data have.
        in_memory: decode the images once, hold them as uint8 on the device that trains and augment whole batches there:
            much faster where small images leave the network waiting. Crops and mirroring alone; random crops need 4 times the
            memory, and are interpolated bilinearly.
        crop: how training images are cropped: pad shifts padded images, rrc crops and resizes at random, auto pads up
            to 96 pixels.
        crop_scale: smallest area of a random crop, as a fraction of the image.
        auto_augment: timm's name of an augmentation policy, such as rand-m9-mstd0.5.
        color_jitter: strength of the colour jitter.
        random_erase: probability of random erasing.
        mixup: alpha of mixup; 0 is off.
        cutmix: alpha of cutmix; 0 is off.
        label_smoothing: probability mass taken from the true class.
        teacher: a checkpoint or weights file of a classifier of the same classes, whose logits the network learns from too.
        teacher_weight: weight of the teacher in the loss; the labels have the rest.
        teacher_temperature: temperature by which the logits of both are divided.
        anneal_to_conv: epochs at the end in which the gates are annealed to their means, with the network from before as its own
            teacher; then every operator is one plain convolution exactly. For pixel_shift and channel_gate; 0 is off.
        recalibrate_norms: before each judging, measure the statistics of batch norms again over so many training images, as they
            are judged: what is averaged while training is of augmented images. 0 keeps that.
        channels_last: keep images and weights in the channels-last memory format.
        compile: compile the network with torch.compile.
    """

    model: str = "resnet18"
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    weights: str | None = None
    small_images: bool = False
    data: str = "digits"
    image_size: int | None = None
    in_chans: Literal[1, 3, "auto"] = 3
    in_memory: bool = False
    crop: Literal["auto", "pad", "rrc"] = "auto"
    crop_scale: float = 0.08
    auto_augment: str | None = None
    color_jitter: float = 0.0
    random_erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    teacher: str | None = None
    teacher_weight: float = 0.5
    teacher_temperature: float = 2.0
    anneal_to_conv: int = 0
    recalibrate_norms: int = 0
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)")
        sides = f"from {SMALLEST_SIDE} to {LARGEST_SIDE} pixels"
        require(self, "image_size", self.image_size is None or SMALLEST_SIDE <= self.image_size <= LARGEST_SIDE, sides)
        require(self, "weights", self.weights is None or not self.pretrained, "left out with --pretrained")
        require(self, "recalibrate_norms", self.recalibrate_norms >= 0, "0 or a number of images")
        require(self, "anneal_to_conv", 0 <= self.anneal_to_conv <= self.epochs, f"from 0 to epochs ({self.epochs})")
        alone = not self.anneal_to_conv or (self.ema_decay is None and not self.compile)
        require(self, "anneal_to_conv", alone, "left out with --ema-decay or --compile")
        require(self, "teacher_weight", 0 < self.teacher_weight <= 1, "more than 0 and at most 1")
        require(self, "teacher_temperature", 0 < self.teacher_temperature < math.inf, "more than 0")
        require(self, "crop_scale", 0 < self.crop_scale <= 1, "more than 0 and at most 1")
        require(self, "random_erase", 0 <= self.random_erase <= 1, "from 0 to 1")
        for name in ("mixup", "cutmix", "color_jitter"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "at least 0")
        mixes = self.mixup > 0 or self.cutmix > 0
        require(self, "batch_size", not mixes or self.batch_size % 2 == 0, "even with mixup or cutmix")

    @property
    def task(self) -> str:
        return "classify"

    @property
    def network(self) -> str:
        """The model."""
        return self.model

    @property
    def begins_with(self) -> str | None:
        """timm's weights, or those of a file."""
        return "pretrained weights" if self.pretrained else self.weights and f"weights of {self.weights}"

    @property
    def trained(self) -> str:
        """Data and model."""
        return f"{Path(self.data.rpartition(':')[2]).name}-{self.model.removeprefix('xvolution_')}"


@dataclass
class DetectionConfig(RunConfig):
    """A training of a detector on data in COCO's format.

    Args:
        task: detect for boxes, segment for boxes and masks.
        architecture: the detector: fasterrcnn, maskrcnn, retinanet or fcos, all with a feature pyramid; by default
            maskrcnn for segment and fasterrcnn for detect.
        version: version of the detector's heads: 1, or 2 for torchvision's v2 heads.
        backbone: the network under the detector: a torchvision ResNet or a timm name.
        backbone_weights: a classifier's weights for the backbone: a .ckpt or .safetensors file of this library, or a .safetensors
            file of timm or torchvision.
        pretrained: begin with the library's ImageNet weights in the backbone.
        norm: norms of the backbone: frozen keeps a classifier's statistics, batch trains them. By default frozen where it begins
            with a classifier's weights, and batch where it begins with random ones, whose norms have no statistics.
        trainable_layers: how many of the backbone's five layers, from the end, are trained; by default 3 where it begins with a
            classifier's weights, and all 5 where it begins with random ones.
        parts: where convolutions are replaced: backbone (in the stages of --stages), fpn, rpn, mask, head.
        model_kwargs: further arguments of torchvision's class, as JSON, such as {"box_score_thresh": 0.2}.
        data: the images: a folder in COCO's format, a folder of parquet files or a Hugging Face data set with boxes.
        min_size: shorter side of the images in pixels.
        max_size: longer side of the images in pixels, at most.
        scale_jitter: smallest and largest factor of the shorter side in training; [1,1] is none.
        large_scale_jitter: resize training images by 0.1 to 2 and crop or pad them to a square of min_size.
        aspect_groups: make batches of images that are all wide or all high.
    """

    task: Literal["detect", "segment"] = "detect"
    architecture: Literal["fasterrcnn", "maskrcnn", "retinanet", "fcos"] | None = None
    version: int = 1
    backbone: str = "resnet50"
    backbone_weights: str | None = None
    pretrained: bool = False
    norm: Literal["frozen", "batch"] | None = None
    trainable_layers: int | None = None
    parts: list[str] = field(default_factory=lambda: ["backbone", "fpn"])
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    min_size: int = 800
    max_size: int = 1333
    scale_jitter: list[float] = field(default_factory=lambda: [1.0, 1.0])
    large_scale_jitter: bool = False
    aspect_groups: bool = True

    epochs: int = 12
    batch_size: int = 2
    lr: float = 0.005
    weight_decay: float = 1e-4
    schedule: str = "multistep"

    def __post_init__(self) -> None:
        super().__post_init__()
        masks = self.task == "segment"
        if self.architecture is None:
            self.architecture = "maskrcnn" if masks else "fasterrcnn"
        fitting = "maskrcnn with --task segment, and another one with --task detect"
        require(self, "architecture", masks == (self.architecture == "maskrcnn"), fitting)
        jitter = len(self.scale_jitter) == 2 and 0 < self.scale_jitter[0] <= self.scale_jitter[1]
        require(self, "scale_jitter", jitter, "two positive numbers, the smaller one first")
        sides = f"from {SMALLEST_SIDE} to {LARGEST_SIDE} pixels"
        for name in ("min_size", "max_size"):
            require(self, name, SMALLEST_SIDE <= getattr(self, name) <= LARGEST_SIDE, sides)
        require(self, "max_size", self.max_size >= self.min_size, f"at least min-size ({self.min_size})")
        require(self, "trainable_layers", (layers := self.trainable_layers) is None or 0 <= layers <= 5, "from 0 to 5")
        alone = self.backbone_weights is None or not self.pretrained
        require(self, "backbone_weights", alone, "left out with --pretrained")

    @property
    def begins_trained(self) -> bool:
        """Whether the backbone begins with the weights of a classifier."""
        return self.pretrained or self.backbone_weights is not None

    @property
    def backbone_norm(self) -> Literal["frozen", "batch"]:
        """``norm``, or what suits the weights that the backbone begins with."""
        return self.norm or ("frozen" if self.begins_trained else "batch")

    @property
    def trained_layers(self) -> int:
        """``trainable_layers``, or what suits the weights that the backbone begins with."""
        if self.trainable_layers is not None:
            return self.trainable_layers
        return 3 if self.begins_trained else 5

    @property
    def network(self) -> str:
        """Architecture and backbone."""
        return f"{self.architecture} over {self.backbone}"

    @property
    def begins_with(self) -> str | None:
        """The backbone's weights."""
        file = self.backbone_weights
        return (
            "pretrained weights in the backbone" if self.pretrained else file and f"weights of {file} in the backbone"
        )

    @property
    def trained(self) -> str:
        """Data, architecture and backbone."""
        backbone = self.backbone.replace("/", "-")
        return f"{Path(self.data).expanduser().resolve().name}-{self.architecture}-{backbone}"
