"""Names in an ONNX graph: of its inputs, its outputs and their open axes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from xvolution.deploy.runtimes.labels import Labels

if TYPE_CHECKING:
    from onnx import GraphProto


def rename(graph: GraphProto, labels: Labels) -> None:
    """Give inputs, outputs and open axes of a graph the names of the labels.

    Raises:
        ValueError: there are more or fewer names than inputs or outputs, or two are the same.
    """
    labels.require_fitting(len(graph.input), len(graph.output))
    axes = _axes(graph, labels)
    for each in _graphs(graph):
        for value in (*each.input, *each.output, *each.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_param = re.sub(r"\w+", lambda word: axes.get(word[0], word[0]), dim.dim_param)
    _rename_values(graph, _values(graph, labels))


def _axes(graph: GraphProto, labels: Labels) -> dict[str, str]:
    """The exporter's name of each dynamic axis -> its new name; axes with the same exporter's name are one axis."""
    found: dict[str, str] = {}
    for value, names in zip(graph.input, labels.axes, strict=False):
        for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
            if dim.dim_param and dim.dim_param not in found:
                taken = sum(other.partition("_")[0] == name for other in found.values())
                found[dim.dim_param] = f"{name}_{taken + 1}" if taken else name
    return found


def _values(graph: GraphProto, labels: Labels) -> dict[str, str]:
    """The old and new names of all renamed values."""
    names: dict[str, str] = {}
    for values, wanted in ((graph.input, labels.input_names), (graph.output, labels.output_names)):
        names |= {value.name: name for value, name in zip(values, wanted, strict=False)}
    # A value inside the graph that has such a name already makes room.
    inner = {name for each in _graphs(graph) for node in each.node for name in node.output}
    inner |= {weight.name for each in _graphs(graph) for weight in each.initializer}
    clashing = (inner & set(names.values())) - names.keys()
    return {**names, **{name: f"{name}_inside" for name in clashing}}


def _rename_values(graph: GraphProto, names: Mapping[str, str]) -> None:
    for each in _graphs(graph):
        for value in (*each.input, *each.output, *each.value_info, *each.initializer):
            value.name = names.get(value.name, value.name)
        for node in each.node:
            for fields in (node.input, node.output):
                fields[:] = [names.get(name, name) for name in fields]


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph, and those inside of its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graphs(inner)
