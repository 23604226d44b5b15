"""Names and properties that a file stores beside its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

#: Names of the axes of signals, images and videos, by the number of their dimensions.
AXES: Mapping[int, tuple[str, ...]] = {
    3: ("batch", "channels", "length"),
    4: ("batch", "channels", "height", "width"),
    5: ("batch", "channels", "depth", "height", "width"),
}


@dataclass(frozen=True)
class Labels:
    """Names and properties that a file stores beside its graph.

    Attributes:
        input_names: names of the inputs; empty keeps the exporter's.
        output_names: names of the outputs; empty keeps the exporter's.
        axes: names of the dynamic axes of each input; empty keeps the exporter's.
        properties: strings to store in the file, by name.
    """

    input_names: Sequence[str] = ()
    output_names: Sequence[str] = ()
    axes: Sequence[Sequence[str]] = ()
    properties: Mapping[str, str] = field(default_factory=dict)

    def require_fitting(self, inputs: int, outputs: int) -> None:
        """Raise ``ValueError`` unless the names are as many as inputs and outputs, or none, and all differ."""
        for kind, names, count in (("input", self.input_names, inputs), ("output", self.output_names, outputs)):
            if names and len(names) != count:
                raise ValueError(f"{kind}_names has {len(names)} names, and the network has {count} {kind}s")
        names = [*self.input_names, *self.output_names]
        if len(set(names)) < len(names):
            raise ValueError(f"the names of inputs and outputs must differ; given are {', '.join(names)}")
