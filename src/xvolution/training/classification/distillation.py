"""Distillation: learning from the logits of another network.

Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean, arXiv 1503.02531, 2015).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xvolution.training.classification.metadata import ClassifierMetadata
from xvolution.training.errors import InputError


class Teacher(nn.Module):
    """A frozen network in eval mode: the student's images (N, in_chans, H, W) to (N, num_classes) logits.

    Args:
        network: a network with the same classes.
        scale, shift: (in_chans,), from the student's normalization of images to the teacher's.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.register_buffer("scale", scale.reshape(-1, 1, 1))
        self.register_buffer("shift", shift.reshape(-1, 1, 1))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        self.eval()  # whatever a trainer sets on all that it holds
        return self.network(images * self.scale + self.shift)


def teacher_of(path: str, network: nn.Module, metadata: ClassifierMetadata, student: ClassifierMetadata) -> Teacher:
    """The network of a file as teacher, which converts the student's images to its own normalization.

    Raises:
        InputError: it has other classes, or takes images with another number of channels.
    """
    if metadata.class_names != student.class_names:
        raise InputError(
            f"--teacher {path} has {len(metadata.class_names)} classes that differ from the "
            f"{len(student.class_names)} classes of the data or from their order; give a teacher with the "
            "same classes."
        )
    if metadata.model.in_chans != student.model.in_chans:
        raise InputError(
            f"--teacher {path} takes images of {metadata.model.in_chans} channels, but the network takes "
            f"{student.model.in_chans}; give --in-chans {metadata.model.in_chans}."
        )
    (mean, std), (own_mean, own_std) = (
        (torch.tensor(each.preprocessing.mean), torch.tensor(each.preprocessing.std)) for each in (metadata, student)
    )
    return Teacher(network, own_std / std, (own_mean - mean) / std)


def distilled(loss: Tensor, logits: Tensor, taught: Tensor, weight: float, temperature: float) -> Tensor:
    """``(1 - weight) loss + weight T² KL(softmax(taught / T) || softmax(logits / T))``, the mean over the images.

    Args:
        loss: of the labels.
        logits, taught: (N, num_classes), of the student and of the teacher.
        weight: from 0 to 1.
        temperature: T; its square keeps the gradient's size.
    """
    own, theirs = ((scores.float() / temperature).log_softmax(1) for scores in (logits, taught))
    divergence = F.kl_div(own, theirs, reduction="batchmean", log_target=True)
    return (1 - weight) * loss + weight * temperature**2 * divergence
