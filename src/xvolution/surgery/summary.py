"""What a conversion replaced, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from xvolution.nn import XVolution
from xvolution.surgery.modules import call, evaluating


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, each shared one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: nn.Module, example_inputs: Any) -> int | None:
    """Floating-point operations of one forward pass in eval mode (a multiply-add is two); None without inputs.

    Counts convolutions and matrix products, as ``torch.utils.flop_counter`` does.
    """
    if example_inputs is None:
        return None
    # Imported here because it loads triton, which `import xvolution` can do without.
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        # The counter hooks every input that asks for a gradient, and a view of a parameter asks even where none are recorded.
        for parameter in trained:
            parameter.requires_grad_(False)
        with evaluating(model), counter:
            call(model, example_inputs)
    finally:
        for parameter in trained:
            parameter.requires_grad_()
    return counter.get_total_flops()


@dataclass(frozen=True)
class Replacement:
    """One replaced convolution."""

    name: str
    geometry: str
    norm: str | None
    parameters_before: int
    parameters_after: int

    @classmethod
    def of(cls, name: str, conv: Any, operator: nn.Module, norm: str | None) -> Replacement:
        """Describe ``conv`` called ``name`` and the operator in its place; ``norm`` is the name of the norm that moved."""
        geometry = f"{'x'.join(map(str, conv.kernel_size))} {conv.in_channels}->{conv.out_channels}"
        geometry += f" /{conv.stride[0]}" if max(conv.stride) > 1 else ""
        geometry += f" groups={conv.groups}" if conv.groups > 1 else ""
        moved = operator.conv_norm if isinstance(operator, XVolution) and norm else nn.Identity()
        before = count_parameters(conv) + count_parameters(moved)
        return cls(name, geometry, norm, before, count_parameters(operator))


@dataclass(frozen=True)
class ConversionSummary:
    """All replaced convolutions, parameters and FLOPs of the whole model; ``print`` it for a table.

    FLOPs are those of one forward pass over ``input_shape`` in the training form; None when no inputs were at hand.
    """

    replaced: list[Replacement]
    parameters_before: int
    parameters_after: int
    flops_before: int | None
    flops_after: int | None
    input_shape: tuple[int, ...] | None

    def __str__(self) -> str:
        header = ("convolution", "geometry", "norm moved in", "parameters", "after")
        rows = [
            (row.name, row.geometry, row.norm or "-", f"{row.parameters_before:,}", f"{row.parameters_after:,}")
            for row in self.replaced
        ]
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 3 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (header, *rows)
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        lines.append(f"{len(rows)} convolutions replaced")
        lines.append(_change("parameters", self.parameters_before, self.parameters_after))
        if self.flops_before and self.flops_after:
            lines.append(f"{_change('FLOPs', self.flops_before, self.flops_after)} for input {self.input_shape}")
        return "\n".join(lines)


def _change(what: str, before: int, after: int) -> str:
    return f"{what}: {before:,} -> {after:,} ({after / before - 1:+.1%})"
