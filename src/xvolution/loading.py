"""A network that is ready for pictures, from a file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from xvolution.training.predictor import Predictor


def load(
    path: str | os.PathLike[str],
    device: str | torch.device = "auto",
    *,
    max_pixels: int | None = None,
    checksum: bool = True,
) -> Predictor[Any]:
    """Open a file that ``xvolution train`` or ``xvolution deploy`` wrote, of any form, ready for pictures.

    ``load(path).predict("photo.jpg")`` answers with names; ``.classes`` are all of them, ``.preprocess`` makes a tensor of one
    picture, and a call on a batch of such tensors returns what the network returns. Nothing in the file is run but its network:
    weights are read as plain tensors, and a ``.pt2`` file that could run other code is refused.

    Args:
        path: a .ckpt, .safetensors (training or deployed form), .onnx, .xml or .pt2 file.
        device: cpu, cuda, cuda:1, mps, or auto for a GPU where there is one. Exported files run on the CPU.
        max_pixels: the most that a picture may have; Pillow's own limit when None.
        checksum: compare the file with the checksum in it, where it has one.

    Returns:
        A `ClassifierPredictor` or a `DetectorPredictor`, in eval mode.

    Raises:
        ImportError: a package is missing; the message says which extra has it.
        xvolution.training.InputError: there is no such file, it is damaged, or it is none of this library.
    """
    try:
        from xvolution.training.api import load_predictor
    except ImportError as error:
        message = f"xvolution.load needs {error.name}; install it with pip install 'xvolution[train]'"
        raise ImportError(message, name=error.name) from error
    return load_predictor(path, device, max_pixels=max_pixels, checksum=checksum)
