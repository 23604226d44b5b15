"""Statistics of a trained network's attention branches over many images, and the network without them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xvolution.attention.base import methods_of
from xvolution.conversion.attention_share import share_of, usual_variance
from xvolution.operator import XVolution2d


@dataclass(frozen=True)
class BranchStatistics:
    """Statistics of one operator's attention branch.

    Attributes:
        size: (H', W'), pixels of the operator's output.
        share: variance of the attention branch over that of both branches added up, after their norms, from 0 (convolution
            alone) to 1; mean over channels. See `xvolution.conversion.attention_share`.
        context: part of the attention branch's variance that is the same at every pixel of an image; it depends on
            the image but not on the position. Mean over channels.
        kurtosis: fourth standardized moment of the products ``φ(q) ⊙ Σ_δ w_δ ⊙ k_δ`` in front of ``W^v``, mean over channels: 3
            for a normal distribution, more for heavier tails. None for branches without such products, and where none varies.
        mean: (C_out,), the attention branch's average.
    """

    size: tuple[int, int]
    share: float
    context: float
    kurtosis: float | None
    mean: Tensor


class Moments:
    """Moments by channel over images and pixels, gathered batch by batch in fp64."""

    def __init__(self) -> None:
        self._pixels = self._images = 0
        self._powers: Any = 0
        self._image_means: Any = 0

    def add(self, x: Tensor) -> None:
        """One batch, (N, C, H, W)."""
        x = x.double().flatten(2)
        means = x.mean(2)
        self._pixels += x.shape[0] * x.shape[2]
        self._images += x.shape[0]
        self._powers = self._powers + torch.stack([x.pow(power).sum((0, 2)) for power in (1, 2, 3, 4)])
        self._image_means = self._image_means + torch.stack([means, means.square()]).sum(1)

    @property
    def mean(self) -> Tensor:
        """(C,)."""
        return self._powers[0] / self._pixels

    @property
    def variance(self) -> Tensor:
        """(C,), biased."""
        return (self._powers[1] / self._pixels - self.mean.square()).clamp(min=0)

    @property
    def variance_of_image_means(self) -> Tensor:
        """(C,), biased."""
        first, second = self._image_means / self._images
        return (second - first.square()).clamp(min=0)

    @property
    def kurtosis(self) -> Tensor:
        """(C,)."""
        mean, (_, second, third, fourth) = self.mean, self._powers / self._pixels
        centred = fourth - 4 * mean * third + 6 * mean.square() * second - 3 * mean.pow(4)
        return centred / self.variance.square()


def attending_operators(model: nn.Module) -> dict[str, XVolution2d]:
    """The operators of a network in training form that have an attention branch, by their names."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, XVolution2d) and module.attention is not None
    }


def attending_operator(model: nn.Module, name: str) -> XVolution2d:
    """One of ``attending_operators``.

    Raises:
        ValueError: there is none of that name; the message lists those that there are.
    """
    operators = attending_operators(model)
    if name not in operators:
        raise ValueError(
            f"the model has no XVolution2d with attention called {name!r}; it has {', '.join(operators) or 'none'}"
        )
    return operators[name]


@torch.no_grad()
def branch_statistics(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, BranchStatistics]:
    """Run ``model`` over images and measure both branches of each of its operators.

    Args:
        model: in evaluation mode and training form (not re-parameterized).
        batches: of images, (N, C, H, W), what the model takes.

    Returns:
        By the operator's name in ``model.named_modules()``.

    Raises:
        ValueError: no operator with attention, no batch, or the model is in training mode.
    """
    operators = attending_operators(model)
    if not operators:
        raise ValueError(
            "this model has no XVolution2d with attention; give the training form, since re-parameterizing "
            "merges the branches"
        )
    if any(operator.training for operator in operators.values()):
        raise ValueError(
            "the model is in training mode, and running it would change its statistics; call model.eval() first"
        )
    usual = usual_variance(model)
    probes = {name: _Probe(operator, usual) for name, operator in operators.items()}
    with ExitStack() as stack:
        for probe in probes.values():
            stack.callback(probe.remove)
        for images in batches:
            model(images)
    if any(probe.size is None for probe in probes.values()):
        raise ValueError(
            "no operator was run: there was no batch of images, or the model does not call them; give at least "
            "one batch"
        )
    return {name: probe.statistics() for name, probe in probes.items()}


@contextmanager
def silenced(model: nn.Module, averages: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace the output of attention branches by its average while the context lasts.

    Args:
        model: in training form; it computes as before when the context ends.
        averages: operator's name -> (C_out,), ``BranchStatistics.mean``.

    Raises:
        ValueError: the model has no operator of that name.
    """
    with ExitStack() as stack:
        for name, mean in averages.items():
            handle = attending_operator(model, name).attention_norm.register_forward_hook(
                lambda _, __, y, mean=mean: mean.to(y)[:, None, None].expand_as(y)
            )
            stack.callback(handle.remove)
        yield


class _Probe:
    """Records one operator's inputs and outputs while the network runs."""

    def __init__(self, operator: XVolution2d, usual: float) -> None:
        self.size: Any = None
        self._usual = usual
        self._attended: Any = None
        self._attention, self._convolution, self._products = Moments(), Moments(), Moments()
        projection = methods_of(operator.attention).projection
        self._has_products = projection is not None
        self._handles = [
            operator.attention_norm.register_forward_hook(self._keep),
            operator.register_forward_hook(self._measure),
        ]
        if projection is not None:
            products = projection.register_forward_pre_hook(lambda _, inputs: self._products.add(inputs[0]))
            self._handles.append(products)

    def _keep(self, _: nn.Module, __: Any, attended: Tensor) -> None:
        self._attended = attended

    def _measure(self, _: nn.Module, __: Any, y: Tensor) -> None:
        self.size = tuple(y.shape[-2:])
        self._attention.add(self._attended)
        self._convolution.add(y - self._attended)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def statistics(self) -> BranchStatistics:
        attention, convolution = self._attention.variance, self._convolution.variance
        return BranchStatistics(
            self.size,
            share=share_of(attention, convolution, self._usual),
            context=_mean_ratio(self._attention.variance_of_image_means, attention),
            kurtosis=self._kurtosis() if self._has_products else None,
            mean=self._attention.mean.float(),
        )

    def _kurtosis(self) -> float | None:
        found = self._products.kurtosis
        varying = found[found.isfinite()]
        return float(varying.mean()) if len(varying) else None


def _mean_ratio(part: Tensor, whole: Tensor) -> float:
    """Mean over channels; a channel that does not vary counts as 0."""
    return float(torch.where(whole > 0, part / whole, torch.zeros_like(whole)).mean())
