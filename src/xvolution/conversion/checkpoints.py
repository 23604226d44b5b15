"""Checkpoints of a network from before its conversion, whose norms moved into the operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from xvolution.operator import XVolution

#: Where wrappers hold the module that they wrap: torch.compile and DistributedDataParallel.
_WRAPPERS = ("_orig_mod", "module")
#: Parts of an operator that no checkpoint from before the conversion has.
_NEW_PARTS = ("attention", "attention_norm", "parallel")


class MovedNorm:
    """Load hooks by which a norm that moved into an operator is found under its old name as well as under its new one.

    They sit on the norm and on what took its place, and work in whatever module holds both: a part cut out of the network, a
    copy, a wrapper.

    Args:
        norm: the norm, where it is now.
        place: what is where the norm was.
    """

    def __init__(self, norm: nn.Module, place: nn.Module) -> None:
        self.norm = norm
        # The list of missing keys, which is one and the same in one call of load_state_dict, tells calls apart.
        self._loaded: list[str] | None = None
        self._awaited: tuple[list[str], str] | None = None
        norm.register_load_state_dict_pre_hook(self.at_its_new_place)
        place.register_load_state_dict_pre_hook(self.at_its_old_place)

    def __getstate__(self) -> dict[str, Any]:
        return {"norm": self.norm, "_loaded": None, "_awaited": None}

    def at_its_old_place(
        self,
        place: nn.Module,
        values: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: list[str],
        *more: Any,
    ) -> None:
        """Load the norm from the old names, where they are there."""
        names = [prefix + name for name in self.norm.state_dict()]
        given = {name: values.pop(name) for name in names if name in values}
        if not given:
            return
        awaited, self._loaded = self._awaited, None
        self.norm._load_from_state_dict(given, prefix, metadata, strict, missing, *more)  # calls at_its_new_place
        self._awaited = None
        if awaited is not None and awaited[0] is missing:
            missing[:] = [name for name in missing if not name.startswith(awaited[1])]
        else:
            self._loaded = missing

    def at_its_new_place(
        self,
        norm: nn.Module,
        values: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: list[str],
        *more: Any,
    ) -> None:
        """Miss nothing that came, or will come, under the old names."""
        if self._loaded is missing:
            for name, value in norm.state_dict().items():
                values.setdefault(prefix + name, value)
        else:
            self._awaited = (missing, prefix)
        self._loaded = None


def load_unconverted(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a checkpoint of a network from before its convolutions became X-volutions.

    ``model.load_state_dict`` does the same with ``strict=False``; here everything but the weights that are new must be there.

    Args:
        model: the converted network, a part of it, or either one inside ``torch.compile`` or ``DistributedDataParallel``.
        state_dict: of the unconverted network or of the same part of it, also as these wrappers write it.

    Raises:
        ValueError: a weight is missing that is not new, or one is there that the network does not have.
        RuntimeError: a weight of another shape.
    """
    while isinstance(
        inner := next((model._modules[name] for name in _WRAPPERS if name in model._modules), None), nn.Module
    ):
        model = inner
    values = dict(state_dict)
    for prefix in _WRAPPERS * 2:
        if values and all(name.startswith(f"{prefix}.") for name in values):
            values = {name.removeprefix(f"{prefix}."): value for name, value in values.items()}
    missing, unexpected = model.load_state_dict(values, strict=False)
    new = tuple(
        ".".join([*name.split("."), part, ""]).removeprefix(".")
        for name, module in model.named_modules()
        if isinstance(module, XVolution)
        for part in _NEW_PARTS
    )
    missing = [name for name in missing if not name.startswith(new)]
    wrong = [f"lacks {_listed(missing)}"] * bool(missing) + [f"has {_listed(unexpected)} too"] * bool(unexpected)
    if wrong:
        raise ValueError(
            f"the checkpoint {' and '.join(wrong)}; give one of the network before its conversion to X-volution, or of the same "
            "part of it"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
