"""Loading a network from a file, ready to predict pictures."""

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

    ``load(path).predict("photo.jpg")`` returns class names; ``.classes`` lists all of them, ``.preprocess`` makes a tensor from a
    picture, and a call on a batch of such tensors returns the network's outputs. No code in the file is run: weights are read as
    plain tensors, and a ``.pt2`` file that could run other code is refused.

    Args:
            path: a .ckpt, .safetensors (training or deployed form), .onnx, .xml, .pt2, .tflite or .mlpackage file.
        device: cpu, cuda, cuda:1, mps, or auto for a GPU if there is one. Exported files run on the CPU.
        max_pixels: largest number of pixels in a picture; Pillow's own limit if None.
        checksum: check the file against the checksum stored in it, if it has one.

    Returns:
        A `ClassifierPredictor` or a `DetectorPredictor`, in eval mode.

    Raises:
        ImportError: a package is missing; the message says which extra has it.
        xvolution.training.InputError: there is no such file, it is damaged, or this library did not write it.
    """
    try:
        from xvolution.training.api import load_predictor
    except ImportError as error:
        message = f"xvolution.load needs {error.name}; install it with pip install 'xvolution[train]'"
        raise ImportError(message, name=error.name) from error
    return load_predictor(path, device, max_pixels=max_pixels, checksum=checksum)
