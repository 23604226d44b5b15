"""CellCentroidFormer: detects cells as centroids with height and width, by a backbone, a neck with attention and two heads.

Wagner, Rohr: CellCentroidFormer: Combining Self-attention and Convolution for Cell Detection, 2022, arXiv 2206.00338.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from xvolution.models.factory import ModelError
from xvolution.operators import MobileViT2d

#: Pixels of the image to one of the backbone's features.
REDUCTION = 16


class CentroidMaps(NamedTuple):
    """The predictions of the network, or their targets.

    Attributes:
        heatmap: (N, 1, H, W), 1 at the centroids and 0 far from them.
        sizes: (N, 2, H, W), the height of a cell over that of the unit, which is the image unless another is given, and its
            width likewise; 0 where a target has no cell.
    """

    heatmap: Tensor
    sizes: Tensor


class Detections(NamedTuple):
    """Cells of one image, best first.

    Attributes:
        boxes: (K, 4), left, top, right and bottom in pixels, from the image's upper left corner.
        scores: (K,), the heat map at the centroid.
    """

    boxes: Tensor
    scores: Tensor


class CellCentroidFormer(nn.Module):
    """(N, in_chans, H, W) images to ``CentroidMaps`` of the same height and width, in [0, 1].

    From the paper's official code: the features of EfficientNetV2-S at 1/16; a neck of a MobileViT block, two
    convolutions, bilinear upsampling to 1/8, a MobileViT block and two convolutions of twice the channels, where each
    convolution is followed by ReLU and layer norm, and a block has two transformer layers with two heads over 2x2 patches;
    two heads, for the heat map and for the sizes, of three upsampling blocks (bilinear, then twice convolution, ReLU, batch
    norm), a convolution to 32 channels with ReLU, and one to the outputs with a sigmoid. All these convolutions are 3x3.

    Our choices: the backbone's narrow features instead of those inside its next block, so that any timm backbone serves; the
    MobileViT block of its own paper, which has batch norms; the channels of neck and heads; the heat map starts low; a map
    that 16 does not divide is cropped to the image.

    Args:
        backbone: a timm model with features at 1/16.
        pretrained: load timm's weights into the backbone.
        in_chans: channels of the images.
        neck_channels: channels of the two MobileViT blocks; both must be even, for 2 attention heads.
        head_channels: channels of the three upsampling blocks.

    Raises:
        ModelError: timm has no such backbone, or it has no features at 1/16.
        ValueError: too few channels, or channels that the attention heads do not divide.
    """

    def __init__(
        self,
        backbone: str = "tf_efficientnetv2_s",
        pretrained: bool = False,
        in_chans: int = 3,
        neck_channels: Sequence[int] = (128, 64),
        head_channels: Sequence[int] = (64, 48, 32),
    ) -> None:
        super().__init__()
        if len(neck_channels) != 2 or len(head_channels) != 3:
            raise ValueError(
                f"neck_channels={tuple(neck_channels)} and head_channels={tuple(head_channels)}; give two "
                "numbers for the neck and three for the heads"
            )
        self.backbone, channels = _backbone(backbone, pretrained, in_chans)
        first, second = neck_channels
        self.neck = nn.Sequential(
            MobileViT2d(channels, first, 3, padding=1, num_heads=2),
            *_conv_layer_norm(first, first),
            *_conv_layer_norm(first, first),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            MobileViT2d(first, second, 3, padding=1, num_heads=2),
            *_conv_layer_norm(second, 2 * second),
            *_conv_layer_norm(2 * second, 2 * second),
        )
        self.heatmap_head = _head(2 * second, head_channels, outputs=1)
        self.sizes_head = _head(2 * second, head_channels, outputs=2)
        # A heat map is empty almost everywhere; from one half, the first steps would only push it down.
        nn.init.constant_(self.heatmap_head[-2].get_parameter("bias"), -2.0)

    def forward(self, x: Tensor) -> CentroidMaps:
        """(N, in_chans, H, W) -> heat map (N, 1, H, W) and sizes (N, 2, H, W)."""
        height, width = x.shape[-2:]
        features = self.neck(self.backbone(x)[-1])
        heatmap, sizes = self.heatmap_head(features), self.sizes_head(features)
        return CentroidMaps(heatmap[..., :height, :width], sizes[..., :height, :width])


def centroid_targets(
    boxes: Sequence[Tensor],
    size: tuple[int, int],
    spread: float = 1 / 6,
    unit: tuple[float, float] | None = None,
) -> CentroidMaps:
    """The target maps for training, from the boxes of the cells.

    The heat map is an elliptic Gaussian around each centroid, as wide and high as the cell, the largest one where several
    overlap. The sizes stand in the inner half of each box, those of the nearest centroid where several overlap. The paper's
    code draws a blurred ellipse, and the sizes as here; the Gaussian, whose peak can be found between pixels, is our choice.

    Args:
        boxes: for each image (M, 4), left, top, right and bottom in pixels; M may be 0. Of a cell whose centroid is outside
            the image only the part inside is drawn.
        size: height and width of the images.
        spread: the Gaussian's standard deviation over the side of the box; at least one pixel.
        unit: height and width in pixels of a cell whose sizes are 1; by default those of the images. A network that trains on
            crops and predicts whole images needs one for both, no smaller than the largest cell.

    Returns:
        (N, 1, H, W) and (N, 2, H, W), in the dtype of the boxes (float32 for whole numbers).

    Raises:
        ValueError: boxes of another shape, or without height and width; a unit that is not positive.
    """
    unit = _unit(unit, size)
    maps = [_image_targets(_checked(image), size, spread, unit) for image in boxes]
    return CentroidMaps(torch.stack([m.heatmap for m in maps]), torch.stack([m.sizes for m in maps]))


def centroid_loss(prediction: CentroidMaps, target: CentroidMaps, size_weight: float = 0.5) -> Tensor:
    """Huber loss of the heat map, and of height and width where the target has a cell: a scalar.

    The heat map's loss is summed over the pixels and divided by the target's sum, so that it does not depend on how empty the
    images are; the sizes' losses are means over the pixels with a cell. The paper's code predicts the three maps and
    leaves the loss to its user; the Huber loss, the normalization and the weights are our choices.

    Args:
        prediction: output of the network.
        target: output of ``centroid_targets``, with the same shapes.
        size_weight: weight of the losses of height and width; the heat map has weight 1.
    """
    heat = F.huber_loss(prediction.heatmap, target.heatmap, reduction="sum") / target.heatmap.sum().clamp_min(1.0)
    cell = (target.sizes > 0).to(target.sizes.dtype)
    errors = F.huber_loss(prediction.sizes, target.sizes, reduction="none") * cell
    height, width = errors.sum((0, 2, 3)) / cell.sum((0, 2, 3)).clamp_min(1.0)
    return heat + size_weight * (height + width)


def decode(
    maps: CentroidMaps, threshold: float = 0.5, window: int = 3, unit: tuple[float, float] | None = None
) -> list[Detections]:
    """Peaks of the heat map, with the sizes found there, as boxes.

    A peak is at least ``threshold`` and the largest of the ``window`` x ``window`` pixels around it; of equal neighbours the
    first counts. Its position between pixels is that of the parabola through the heat map's logarithm, which is exact for a
    Gaussian. The paper's code takes the centroids of the regions above 0.75 instead.

    Args:
        maps: output of the network, or targets.
        threshold: lowest value of a peak in the heat map.
        window: odd side of the neighbourhood, in pixels.
        unit: that of ``centroid_targets``, from which the network learned; by default the height and width of the images, which
            is wrong where these have another size in training.

    Returns:
        one ``Detections`` for each image.

    Raises:
        ValueError: an even window, or one of less than 3 pixels; a unit that is not positive.
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window is {window}; it must be an odd number of pixels, 3 or more")
    height, width = maps.heatmap.shape[-2:]
    peaks = _peaks(maps.heatmap, threshold, window)[:, 0]
    scale = maps.sizes.new_tensor(_unit(unit, (height, width)))
    found = []
    for heat, sizes, is_peak in zip(maps.heatmap[:, 0], maps.sizes, peaks, strict=True):
        rows, columns = is_peak.nonzero(as_tuple=True)
        scores, order = heat[rows, columns].sort(descending=True)
        rows, columns = rows[order], columns[order]
        centres = torch.stack(
            [rows + 0.5 + _offset(heat, rows, columns), columns + 0.5 + _offset(heat.T, columns, rows)], 1
        )
        half = sizes[:, rows, columns].T * scale / 2
        found.append(Detections(torch.cat([(centres - half).flip(1), (centres + half).flip(1)], 1), scores))
    return found


def _backbone(name: str, pretrained: bool, in_chans: int) -> tuple[nn.Module, int]:
    """The network up to its features at 1/16, and their channels."""
    try:
        # Which feature is at 1/16 is known only once the network exists; the second one ends there.
        whole: Any = timm.create_model(name, features_only=True, in_chans=in_chans)
        reductions, channels = whole.feature_info.reduction(), whole.feature_info.channels()
        if REDUCTION not in reductions:
            raise ModelError(
                f"{name} has features at 1/{', 1/'.join(map(str, reductions))} of the image size; give a network "
                f"with features at 1/{REDUCTION}"
            )
        index = max(i for i, reduction in enumerate(reductions) if reduction == REDUCTION)
        options: dict[str, Any] = {"features_only": True, "out_indices": (index,), "in_chans": in_chans}
        return timm.create_model(name, pretrained=pretrained, **options), channels[index]
    except (RuntimeError, TypeError, AttributeError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"timm cannot build the features of {name!r}: {reason}") from error


def _conv_layer_norm(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU(), LayerNorm2d(out_channels)


def _head(in_channels: int, channels: Sequence[int], outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for out_channels in channels:
        layers += [
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(out_channels),
        ]
        in_channels = out_channels
    last = (nn.Conv2d(in_channels, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, outputs, 3, padding=1), nn.Sigmoid())
    return nn.Sequential(*layers, *last)


def _unit(given: tuple[float, float] | None, size: tuple[int, int]) -> tuple[float, float]:
    if given is not None and (len(given) != 2 or not min(given) > 0):
        raise ValueError(
            f"unit is {given}; give a height and a width in pixels, both more than 0, or none for the image's"
        )
    return given or size


def _checked(boxes: Tensor) -> Tensor:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes have the shape {tuple(boxes.shape)}; give (M, 4) with left, top, right, bottom")
    if not bool((boxes[:, 2:] > boxes[:, :2]).all()):
        raise ValueError(
            "a box has height or width 0; boxes are left, top, right, bottom with right > left and bottom > top"
        )
    return boxes if boxes.is_floating_point() else boxes.float()


def _image_targets(boxes: Tensor, size: tuple[int, int], spread: float, unit: tuple[float, float]) -> CentroidMaps:
    height, width = size
    y = torch.arange(height, device=boxes.device, dtype=boxes.dtype)[:, None] + 0.5
    x = torch.arange(width, device=boxes.device, dtype=boxes.dtype) + 0.5
    heatmap, nearest = (boxes.new_zeros(height, width) for _ in range(2))
    sizes = boxes.new_zeros(2, height, width)
    for left, top, right, bottom in boxes:
        cell_width, cell_height = right - left, bottom - top
        dx, dy = x - (left + right) / 2, y - (top + bottom) / 2
        wide, high = ((side * spread).clamp_min(1.0) for side in (cell_width, cell_height))
        heat = torch.exp(-((dx / wide) ** 2 + (dy / high) ** 2) / 2)
        heatmap = torch.maximum(heatmap, heat)
        inner = (dx.abs() <= (cell_width / 4).clamp_min(0.5)) & (dy.abs() <= (cell_height / 4).clamp_min(0.5))
        own = inner & (heat > nearest)
        nearest = torch.where(own, heat, nearest)
        sizes = torch.where(own, torch.stack([cell_height / unit[0], cell_width / unit[1]])[:, None, None], sizes)
    return CentroidMaps(heatmap[None], sizes)


def _peaks(heatmap: Tensor, threshold: float, window: int) -> Tensor:
    """(N, 1, H, W) -> the same shape, true at the peaks."""
    reach = window // 2
    padded = F.pad(heatmap, (reach,) * 4, value=float("-inf"))
    neighbours = F.unfold(padded, window).unflatten(2, heatmap.shape[-2:])
    middle = window * window // 2
    first = (heatmap > neighbours[:, :middle]).all(1, keepdim=True)
    return first & (heatmap >= neighbours[:, middle + 1 :]).all(1, keepdim=True) & (heatmap >= threshold)


def _offset(heat: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """How far, in pixels along the rows, the maximum lies from the pixel: (H, W), (K,), (K,) -> (K,) in [-0.5, 0.5]."""
    last = heat.shape[0] - 1
    tiny = torch.finfo(heat.dtype).tiny
    before, centre, after = (heat[(rows + step).clamp(0, last), columns].clamp_min(tiny).log() for step in (-1, 0, 1))
    curvature = before - 2 * centre + after
    offset = ((before - after) / (2 * curvature)).clamp(-0.5, 0.5)
    inside = (rows > 0) & (rows < last) & (curvature < 0)
    return torch.where(inside, offset, torch.zeros_like(offset))
