"""The configuration of a training run, a dataclass for each task; its fields are the flags of `xvolution train`."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xvolution.training.errors import InputError
from xvolution.training.flags.operators import operator_names
from xvolution.training.fold import parse_holdout
from xvolution.training.upgrade import upgrade_config

if TYPE_CHECKING:
    from typing_extensions import Self

    from xvolution.conversion.config import Conversion

#: Allowed side lengths of images in pixels; a batch of larger images does not fit into memory.
SMALLEST_SIDE, LARGEST_SIDE = 8, 10_000
#: Largest seed of the random generators.
LARGEST_SEED = 2**63 - 1
#: Each uses file descriptors of the training process; evaluation starts the same number again.
MOST_WORKERS = 128


@dataclass
class RunConfig(ABC):
    """The settings of a run of any task: data, operator, schedule, machine.

    Args:
        data: the data to train on.
        operator: the operator that replaces convolutions: xvolution, an attention branch or another operator by name;
            conv keeps the network as it is.
        operator_options: options of the operator as a JSON object; each option also has a flag of its own.
        stages: stages of the network in which convolutions are replaced, counted from 1.
        kernel_sizes: replace only convolutions with these kernel sizes, in pixels; by default every size above 1.
        names: replace only modules whose names match one of these shell patterns, such as layer3.*.conv2; by default
            every name.
        at_projections: replace the 1x1 convolution after a depthwise convolution instead of the depthwise one; ignored
            with kernel sizes or names.
        holdout: evaluate on this fraction of the training part, between 0 and 1, instead of the validation part; or on a fold
            of a classifier's images, such as 2/5: the second of five parts of training and validation part together.
        on_bad_image: what to do with an unreadable image: error stops the run, skip leaves the image out.
        max_pixels: largest number of pixels in an image; larger images are an error. By default Pillow's limit of
            178956970, so that no file fills the memory.
        outside_images: also read images outside the data folder that annotations or tables name.
        workers: number of processes that load images, from 0 to 128; 0 loads them in the training process. By default the
            number of cores minus one, at most 8, and 0 for digits.
        limit_train_batches: largest number of batches in a training epoch; by default all.
        limit_val_batches: largest number of batches in an evaluation; by default all.
        hflip: probability of mirroring a training image, from 0 to 1; by default 0.5, and 0 for digits.
        epochs: number of passes over the training part.
        batch_size: number of images in a batch, for each process.
        accumulate: number of batches whose gradients make one optimizer step.
        optimizer: name of an optimizer in timm, such as sgd, adamw or lamb.
        lr: highest learning rate, which the warm-up ends with.
        new_lr_factor: factor on the learning rate for the parameters that conversion adds.
        momentum: momentum, from 0 to 1, for optimizers that have one, such as sgd.
        weight_decay: weight decay; biases and normalization layers get none.
        schedule: name of a learning rate schedule in timm, such as cosine, step, multistep or linear.
        decay_epochs: number of epochs between two drops of the step schedule.
        decay_milestones: epochs after which the multistep schedule drops the learning rate.
        decay_rate: factor on the learning rate at each drop of the step and multistep schedules.
        warmup_epochs: length of the linear warm-up in epochs; fractions are allowed.
        min_lr: learning rate at the end of the schedule.
        clip_grad: largest norm of the gradient; a larger gradient is scaled down to it. By default there is no limit.
        ema_decay: decay of an exponential moving average of the weights, between 0 and 1; the averaged weights are
            evaluated and exported. By default there is no average.
        precision: precision of the arithmetic: 32 for float32, bf16 or 16 for mixed precision.
        accelerator: kind of device to train on: cpu, gpu, mps or another of Lightning's; auto uses a GPU if there is one.
        devices: number of devices to train on, a list of their indices, or auto.
        num_nodes: number of machines to train on.
        strategy: name of Lightning's strategy for training on several devices, such as ddp.
        seed: seed of weights, order of the images, augmentation and dropout.
        split_seed: seed that chooses the held-out images; by default the seed of the run.
        deterministic: use deterministic algorithms only; on a GPU, a resumed run ends with the same bits only with this
            flag.
        output: folder of the run; by default runs/<data>-<model>-<operator>.
        resume: continue from a checkpoint: last for the one in the output folder, or a path. By default the training
            starts anew.
        checkpoint_every: also write a checkpoint after this many optimizer steps; by default only after each epoch.
        progress: how progress is shown: bar, lines (one line for each epoch) or off; auto shows a bar on a terminal.
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
        _require_numbers(self)
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
        """The conversion; None for the plain network.

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
        """The task's name in the register. Every configuration except `TrainConfig` has it as a field; stored values without it
        are a `TrainConfig`."""

    @property
    @abstractmethod
    def network(self) -> str:
        """The network, in words."""

    @property
    def begins_with(self) -> str | None:
        """The weights from which the network starts, in words; None if they are random."""
        return None

    @property
    @abstractmethod
    def trained(self) -> str:
        """Data and network, as a folder's name."""

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
        """The inverse of `to_dict`, also for older versions; a missing field has its default."""
        return cls(**upgrade_config(values))


def _require_numbers(config: RunConfig) -> None:
    """Raise ``InputError`` where a field that is annotated as a number holds something else."""
    for each in dataclasses.fields(config):
        kind, _, other = str(each.type).partition(" | ")
        value = getattr(config, each.name)
        if kind not in ("int", "float") or other not in ("", "None") or (other and value is None):
            continue
        right = isinstance(value, Integral if kind == "int" else Real) and not isinstance(value, bool)
        require(config, each.name, right, "a whole number" if kind == "int" else "a number")


def require(config: RunConfig, name: str, holds: bool, allowed: str) -> None:
    """Raise ``InputError`` with what was given and what is allowed, unless it holds."""
    if not holds:
        raise InputError(f"--{name.replace('_', '-')} is {getattr(config, name)}; it must be {allowed}.")


@dataclass
class TrainConfig(RunConfig):
    """The configuration of a classifier's training.

    Args:
        model: name of the network in timm, such as resnet18 or convnext_atto.
        model_kwargs: further keyword arguments of timm.create_model, as a JSON object.
        pretrained: start from timm's pretrained weights.
        weights: start from the weights in this file: a checkpoint or weights file of this library, or a .safetensors or .pth
            file with timm's names. The network must be the same, plain or with the same conversion; the last layer is new if
            the number of classes differs. By default no file.
        small_images: give a ResNet a 3x3 stem of stride 1 without max-pooling, for images up to 64 pixels.
        data: the images: digits, a folder of class folders, parquet files or a folder of them, a torchvision data set
            (torchvision:CIFAR10) or a Hugging Face data set.
        image_size: side length of the network's input in pixels, from 8 to 10000; by default the median side length of
            the images if it is at most 96, else 224.
        in_chans: channels of the images: 3 for colour, 1 for grey, auto for the channels of the data.
        in_memory: decode all images once, keep them as uint8 on the training device and augment whole batches there.
            Faster for small images. Only crops and mirroring are possible; random crops take 4 times the memory and use
            bilinear interpolation.
        crop: how training images are cropped: pad shifts padded images, rrc crops and resizes at random, auto is pad for
            images up to 96 pixels and rrc above.
        crop_scale: smallest area of a random crop, as a fraction of the image, above 0 and at most 1.
        auto_augment: name of an augmentation policy in timm, such as rand-m9-mstd0.5; by default no policy.
        color_jitter: strength of the colour jitter; 0 is off.
        random_erase: probability of random erasing, from 0 to 1.
        mixup: alpha of mixup; 0 is off.
        cutmix: alpha of cutmix; 0 is off.
        label_smoothing: probability that label smoothing takes from the true class, from 0 to below 1.
        teacher: checkpoint or weights file of a classifier with the same classes; the network also learns from its
            logits. By default there is no teacher.
        teacher_weight: weight of the teacher in the loss, above 0 and at most 1; the labels get the rest.
        teacher_temperature: temperature that divides the logits of the teacher and of the network.
        anneal_to_conv: number of epochs at the end that anneal each gate to its mean, with the network before these
            epochs as teacher. Each operator then becomes one plain convolution, exactly. Only for pixel_shift and
            channel_gate; 0 is off.
        recalibrate_norms: before each evaluation, measure the statistics of batch norms again on this number of training
            images without augmentation; 0 keeps the running averages of training.
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
    """The configuration of a detector's training on data in COCO's format.

    Args:
        task: detect for boxes, segment for boxes and masks.
        architecture: the detector: fasterrcnn, maskrcnn, retinanet or fcos, each with a feature pyramid; by default
            maskrcnn for segment and fasterrcnn for detect.
        version: version of the detector's heads: 1, or 2 for torchvision's v2 heads.
        backbone: the detector's backbone: a torchvision ResNet or a network of timm, by name.
        backbone_weights: start the backbone from a classifier's weights: a .ckpt or .safetensors file of this library, or
            a .safetensors or .pth file of timm or torchvision. By default no file.
        pretrained: start the backbone from the ImageNet weights of torchvision or timm.
        norm: normalization layers of the backbone: frozen keeps a classifier's statistics, batch trains them. By default
            frozen if the backbone starts from a classifier's weights, and batch if its weights are random.
        trainable_layers: how many of the backbone's five layers are trained, counted from the last, from 0 to 5; by
            default 3 if the backbone starts from a classifier's weights, and 5 if its weights are random.
        parts: parts in which convolutions are replaced: backbone (in the stages of --stages), fpn, rpn, mask, head.
        model_kwargs: further keyword arguments of torchvision's class, as a JSON object, such as {"box_score_thresh":
            0.2}.
        data: the images: a folder in COCO's format, a folder of parquet files or a Hugging Face data set with boxes.
        min_size: length of the shorter side of the images in pixels, from 8 to 10000.
        max_size: largest length of the longer side of the images in pixels, from min_size to 10000.
        scale_jitter: smallest and largest random factor on the size of training images; [1,1] is none.
        large_scale_jitter: resize training images by a random factor from 0.1 to 2, and crop or pad them to a square of
            min_size.
        aspect_groups: put only wide or only high images into one batch.
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
        """Whether the backbone starts from the weights of a classifier."""
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
