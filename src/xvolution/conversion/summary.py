"""Summary of a conversion: replaced convolutions, parameters and FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy

from xvolution.conversion.modules import call, evaluating
from xvolution.convolutions import CONVOLUTIONS
from xvolution.operator import XVolution

#: Of the classes of torch's convolutions.
_NAMES = frozenset(convolution.__name__ for convolution in CONVOLUTIONS.values())
#: The attribute under which a converted network keeps its record; it goes with copies and pickles of the network.
_RECORD = "_xvolution_conversion"


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, each shared one counted once; those of lazy modules that have not run are none yet."""
    return sum(parameter.numel() for parameter in model.parameters() if not is_lazy(parameter))


def count_flops(model: nn.Module, example_inputs: Any) -> int | None:
    """Floating-point operations of one forward pass in eval mode (a multiply-add is two); None without inputs.

    Counts convolutions and matrix products, as ``torch.utils.flop_counter`` does.
    """
    if example_inputs is None:
        return None
    with _counting(model) as total:
        call(model, example_inputs)
        return total()


@contextmanager
def _counting(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Count operations while the context lasts, in eval mode; yields a function that returns the sum so far."""
    # Imported here because it loads triton, which `import xvolution` can do without.
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad and not is_lazy(parameter)]
    try:
        # The counter hooks every input that asks for a gradient, and a view of a parameter asks even where none are recorded.
        for parameter in trained:
            parameter.requires_grad_(False)
        with evaluating(model), counter:
            yield counter.get_total_flops
    finally:
        for parameter in trained:
            parameter.requires_grad_()


@dataclass(frozen=True)
class Replacement:
    """One replaced convolution.

    Attributes:
        name: of the module.
        geometry: in words, such as ``3x3 64->64``.
        norm: the name of the norm that moved into the operator.
        parameters_before, parameters_after: of the convolution with the norm that moved, and of the operator.
        multiplications: of the convolution, for one output value.
    """

    name: str
    geometry: str
    norm: str | None
    parameters_before: int
    parameters_after: int
    multiplications: int

    @classmethod
    def of(cls, name: str, conv: Any, operator: nn.Module, norm: str | None) -> Replacement:
        """Describe ``conv`` called ``name`` and the operator in its place; ``norm`` is the name of the norm that moved."""
        moved = operator.conv_norm if isinstance(operator, XVolution) and norm else nn.Identity()
        before = count_parameters(conv) + count_parameters(moved)
        multiplications = conv.in_channels // conv.groups * prod(conv.kernel_size)
        return cls(name, _in_words(conv), norm, before, count_parameters(operator), multiplications)


@dataclass(frozen=True)
class LeftAlone:
    """One convolution that was not replaced.

    Attributes:
        name: of the module.
        geometry: in words, such as ``3x3 64->64``.
        reason: why, in words.
    """

    name: str
    geometry: str
    reason: str


def left_alone(model: nn.Module, reasons: Mapping[str, str | None]) -> tuple[LeftAlone, ...]:
    """The convolutions that are not replaced, with transposed and compiled ones, in the order of the network.

    Args:
        model: the network before its conversion.
        reasons: by name; None for what is replaced.
    """
    rows = []
    for name, conv in model.named_modules():
        if isinstance(conv, torch.jit.ScriptModule):
            # Of its class the name alone is left, and of its attributes the tensors.
            if conv.original_name in _NAMES:
                outputs, inputs, *sides = conv.weight.shape
                rows.append(
                    LeftAlone(name, f"{'x'.join(map(str, sides))} {inputs}->{outputs}", "compiled by torch.jit")
                )
            continue
        reason = "a transposed convolution" if isinstance(conv, _ConvTransposeNd) else reasons.get(name)
        if reason is not None and not isinstance(conv, XVolution):
            rows.append(LeftAlone(name, _in_words(conv), reason))
    return tuple(rows)


def _in_words(conv: Any) -> str:
    words = f"{'x'.join(map(str, conv.kernel_size))} {conv.in_channels}->{conv.out_channels}"
    words += f" /{conv.stride[0]}" if max(conv.stride) > 1 else ""
    return words + (f" groups={conv.groups}" if conv.groups > 1 else "")


@dataclass(frozen=True)
class Record:
    """The record that ``convert`` stores with a network: replaced convolutions, and the comparison of outputs.

    Attributes:
        replaced: the convolutions.
        parameters_before: of the network.
        input_shape: of the image batch that was run; None where none was, or where the network takes something else.
        proof: one sentence on the comparison of the outputs.
        left: the convolutions that stayed.
    """

    replaced: list[Replacement]
    parameters_before: int
    input_shape: tuple[int, ...] | None
    proof: str
    left: tuple[LeftAlone, ...] = ()


def remember(model: nn.Module, record: Record) -> None:
    """Store the record with the network, after that of an earlier conversion."""
    earlier = getattr(model, _RECORD, None)
    if isinstance(earlier, Record):
        record = Record(
            [*earlier.replaced, *record.replaced],
            earlier.parameters_before,
            record.input_shape or earlier.input_shape,
            record.proof if record.proof == earlier.proof else f"{earlier.proof}; then {record.proof}",
            record.left,
        )
    setattr(model, _RECORD, record)


def is_converted(model: nn.Module) -> bool:
    """Whether ``convert`` has replaced something in the network."""
    return isinstance(getattr(model, _RECORD, None), Record)


def record_of(model: nn.Module) -> Record:
    """The record of a converted network.

    Raises:
        ValueError: ``convert`` has replaced nothing in it.
    """
    record = getattr(model, _RECORD, None)
    if not isinstance(record, Record):
        raise ValueError(f"{type(model).__name__} has no record of a conversion; convert it first")
    return record


def forget(model: nn.Module) -> Record:
    """Remove the record from a part whose network has one for all parts."""
    record = record_of(model)
    delattr(model, _RECORD)
    return record


@dataclass(frozen=True)
class ConversionSummary:
    """All replaced convolutions, the others with reasons, parameters and FLOPs; ``print`` it for a table.

    FLOPs are those of one forward pass over ``input_shape`` in the training form; None when no inputs were at hand.
    """

    replaced: list[Replacement]
    parameters_before: int
    parameters_after: int
    flops_before: int | None
    flops_after: int | None
    input_shape: tuple[int, ...] | None
    proof: str
    left: tuple[LeftAlone, ...] = ()

    def __str__(self) -> str:
        header = ("convolution", "geometry", "norm moved in", "parameters", "after")
        rows = [
            (row.name, row.geometry, row.norm or "-", f"{row.parameters_before:,}", f"{row.parameters_after:,}")
            for row in self.replaced
        ]
        lines = _table(header, rows, numbers=2)
        lines.append(f"{len(rows)} convolutions replaced; {self.proof}")
        lines.append(_change("parameters", self.parameters_before, self.parameters_after))
        if self.flops_before and self.flops_after:
            lines.append(f"{_change('FLOPs', self.flops_before, self.flops_after)} for input {self.input_shape}")
        if self.left:
            lines += [
                "",
                *_table(("left alone", "geometry", "why"), [(r.name, r.geometry, r.reason) for r in self.left]),
            ]
        return "\n".join(lines)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], numbers: int = 0) -> list[str]:
    """Lines of a table under its header; the last ``numbers`` columns are right-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if column >= len(header) - numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def conversion_summary(model: nn.Module, example_inputs: Any = None) -> ConversionSummary:
    """The convolutions of ``model`` that ``convert`` replaced, the others with reasons, and the current parameters and FLOPs.

    Args:
        model: a network from ``convert``, in its training form.
        example_inputs: inputs for counting FLOPs; if None, noise of the shape with which the conversion was checked.

    Raises:
        ValueError: ``convert`` has replaced nothing in it.
    """
    record, shape = record_of(model), None
    if example_inputs is None and record.input_shape is not None:
        like = next(model.parameters())
        example_inputs = torch.randn(record.input_shape, device=like.device, dtype=like.dtype)
    before = after = None
    if example_inputs is not None:
        before, after = _flops(model, record.replaced, example_inputs)
        shape = tuple(example_inputs.shape) if isinstance(example_inputs, Tensor) else None
    parameters = (record.parameters_before, count_parameters(model))
    return ConversionSummary(record.replaced, *parameters, before, after, shape, record.proof, record.left)


def _flops(model: nn.Module, replaced: list[Replacement], inputs: Any) -> tuple[int, int]:
    """FLOPs with the convolutions that were there, and with the operators in their places."""
    with ExitStack() as stack:
        total = stack.enter_context(_counting(model))
        counted: Mapping[str, list[int]] = {row.name: [] for row in replaced}
        convolutions = [0]
        for row in replaced:
            operator = model.get_submodule(row.name)
            marks = counted[row.name]

            def begin(_: nn.Module, __: Any, marks: list[int] = marks) -> None:
                marks.append(-total())

            def end(_: nn.Module, __: Any, y: Tensor, marks: list[int] = marks, row: Replacement = row) -> None:
                marks.append(total())
                convolutions[0] += 2 * row.multiplications * y.numel()

            stack.callback(operator.register_forward_pre_hook(begin).remove)
            stack.callback(operator.register_forward_hook(end).remove)
        call(model, inputs)
        after = total()
    return after - sum(map(sum, counted.values())) + convolutions[0], after


def _change(what: str, before: int, after: int) -> str:
    return f"{what}: {before:,} -> {after:,} ({after / before - 1:+.1%})"
