"""A record of the replaced convolutions, by which a network of the same architecture is converted without a forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from xvolution.conversion.checkpoints import find_moved_norms
from xvolution.conversion.config import ConversionConfig, check_fields
from xvolution.conversion.convert import put_operators
from xvolution.conversion.proof import Changes
from xvolution.conversion.register import config_from_dict
from xvolution.conversion.summary import Record, count_parameters, record_of, remember


@dataclass(frozen=True)
class Recipe:
    """A conversion, convolution by convolution.

    Attributes:
        operator: the operator that replaced each convolution.
        norms: name of a convolution -> name of the norm that moved into its operator, or None.
    """

    operator: ConversionConfig
    norms: Mapping[str, str | None]

    @classmethod
    def of(cls, converted: nn.Module, operator: ConversionConfig) -> Recipe:
        """The recipe of one call of ``convert`` with ``operator`` on a network.

        Raises:
            ValueError: nothing was replaced in it.
        """
        return cls(operator, {row.name: row.norm for row in record_of(converted).replaced})

    def convert_(self, model: nn.Module) -> None:
        """Convert a network of the same architecture in place, on any device, the meta device included.

        Raises:
            ValueError: the network lacks one of the modules; it is as it was.
        """
        names = [name for pair in self.norms.items() for name in pair if name]
        modules = dict(model.named_modules())
        missing = [name for name in names if name not in modules]
        if missing:
            raise ValueError(
                f"{type(model).__name__} has no module {missing[0]}, which the conversion replaced; build the architecture "
                "that was converted"
            )
        parameters, changes = count_parameters(model), Changes(model)
        pairs = {conv: norm for conv, norm in self.norms.items() if norm is not None}
        try:
            replaced = put_operators(changes, list(self.norms), pairs, self.operator)
        except BaseException:
            changes.take_back()
            raise
        find_moved_norms(model, replaced)
        remember(model, Record(replaced, parameters, None, "converted like another network; outputs were not compared"))

    def to_dict(self) -> dict[str, Any]:
        """JSON values.

        Raises:
            ValueError: a field of the operator holds a function.
        """
        return {"operator": self.operator.to_dict(), "norms": dict(self.norms)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of ``to_dict``.

        Raises:
            ValueError: a field, an operator or an option that this version does not know.
        """
        check_fields(cls, values)
        return cls(config_from_dict(values["operator"]), dict(values["norms"]))
