"""The metadata of a weights file, from which the network and its preprocessing can be rebuilt."""

from __future__ import annotations

import json
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

import xvolution
from xvolution.conversion.upgrade import FORMAT
from xvolution.training.errors import InputError
from xvolution.training.schema import Schema, require_described
from xvolution.training.upgrade import upgrade

if TYPE_CHECKING:
    from typing_extensions import Self

HEADER = "xvolution"  # the metadata's key in safetensors headers, ONNX properties and Lightning checkpoints
#: What to do about a checksum that differs.
SKIP_CHECKSUM = "Get the file again, or give --no-checksum to open it anyway."


class Spec(Protocol):
    """The description of a network."""

    @property
    def name(self) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(kw_only=True)
class Metadata(ABC):
    """The metadata in the header of every weights file and in every checkpoint; each type of network has a subclass.

    Attributes:
        model: the network.
        class_names: names of its classes.
        data: its training data.
        form: "training" or "deployed".
        layouts: module name -> layout in the deployed form.
        fold_norms: whether the deployed form also folds the other pairs of convolution and norm.
        provenance: versions, seed, command, commit.
    """

    #: What ``type`` is in a file.
    type: ClassVar[str]
    #: What sentences call the network, with its article.
    noun: ClassVar[str]
    #: What a file may say; None leaves that to `fields`.
    schema: ClassVar[Schema | None] = None

    model: Spec
    class_names: list[str]
    data: str
    form: str = "training"
    layouts: dict[str, str] = field(default_factory=dict)
    fold_norms: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"format": FORMAT, "type": self.type, **vars(self), "model": self.model.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`, also for older versions.

        Raises:
            InputError: something is missing, unknown or out of range, or it describes a network of another type.
        """
        found = type_of(values)
        if found != cls.type:
            raise InputError(f"the file holds a network of the type {found}; give a file of {cls.noun}.")
        upgraded = upgrade(values)
        if cls.schema is not None:
            require_described(upgraded, cls.schema)
        given = {name: value for name, value in upgraded.items() if name not in ("format", "type")}
        try:
            return cls(**cls.fields(given))
        except (KeyError, TypeError) as error:
            raise InputError(f"the file's description of its network cannot be read ({error}).") from error

    @classmethod
    @abstractmethod
    def fields(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The fields from plain JSON values, with objects such as the network's description."""

    def to_json(self) -> str:
        return json.dumps(self.to_dict())


def read_description(text: str) -> dict[str, Any]:
    """The values that `Metadata.to_json` wrote.

    Raises:
        InputError: it is not a JSON object.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the file's description of its network cannot be read ({error}).") from error
    if not isinstance(values, dict):
        raise InputError("the file's description of its network cannot be read (it is not a JSON object).")
    return values


def type_of(values: Mapping[str, Any]) -> str:
    """The type of network in the values of `Metadata.to_dict`.

    Raises:
        InputError: these values describe no network.
    """
    if not isinstance(values, Mapping) or not isinstance(values.get("model"), Mapping):
        raise InputError("the file's description of its network cannot be read (it has no model).")
    found = upgrade(values).get("type")
    if not isinstance(found, str):
        raise InputError("the file's description of its network cannot be read (it has no type).")
    return found


def provenance(seed: int) -> dict[str, Any]:
    """Versions, seed, command and, inside a Git work tree, the commit."""
    versions = {"xvolution": xvolution.__version__, "torch": str(torch.__version__), "python": sys.version.split()[0]}
    for package in ("timm", "lightning"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "seed": seed, "command": [Path(sys.argv[0]).name, *sys.argv[1:]], "commit": _commit()}


def _commit() -> str | None:
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
