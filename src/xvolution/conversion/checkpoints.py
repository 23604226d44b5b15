"""Loading checkpoints of the unconverted network into a converted one, whose norms moved into the operators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from xvolution.conversion.summary import Replacement
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
        norm: the norm at its new place.
        place: the module at the norm's old place.
    """

    def __init__(self, norm: nn.Module, place: nn.Module) -> None:
        self.norm = norm
        self._forget(None)
        norm.register_load_state_dict_pre_hook(self.at_its_new_place)
        place.register_load_state_dict_pre_hook(self.at_its_old_place)

    def __getstate__(self) -> dict[str, Any]:
        return {"norm": self.norm, "_call": None, "_loaded": False, "_loading": False, "_awaited": ()}

    def _forget(self, call: list[str] | None) -> None:
        """Begin with a call of ``load_state_dict``, which its list of missing keys tells from others."""
        self._call = call
        # Whether the norm came under an old name, whether it is just coming, and the prefixes of its new names so far.
        self._loaded, self._loading = False, False
        self._awaited: tuple[str, ...] = ()

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
        """Load the norm from its old names if the checkpoint has them."""
        if self._call is not missing:
            self._forget(missing)
        names = [prefix + name for name in self.norm.state_dict()]
        given = {name: values.pop(name) for name in names if name in values}
        if not given:
            return
        missing[:] = [name for name in missing if not name.startswith(self._awaited)]
        self._loaded = self._loading = True
        self.norm._load_from_state_dict(given, prefix, metadata, strict, missing, *more)  # calls at_its_new_place
        self._loading = False

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
        """Do not report keys as missing that are loaded from the old names."""
        if self._call is not missing:
            self._forget(missing)
        if self._loaded and not self._loading:
            for name, value in norm.state_dict().items():
                values.setdefault(prefix + name, value)
        if not self._loading:
            self._awaited += (prefix,)


def find_moved_norms(model: nn.Module, replaced: Iterable[Replacement]) -> None:
    """Let checkpoints from before the conversion find the norms that moved."""
    for row in replaced:
        if row.norm is not None:
            MovedNorm(model.get_submodule(f"{row.name}.conv_norm"), model.get_submodule(row.norm))


def load_unconverted(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a checkpoint of a network from before its convolutions became X-volutions.

    ``model.load_state_dict`` does the same with ``strict=False``; here all weights except the new ones must be present.
    Loaders that compare names themselves and drop what they do not find, as ``from_pretrained`` of transformers and ``load`` of
    ultralytics do, find few of the old names in a converted network; give this function what they would read.

    Args:
        model: the converted network, a part of it, or either one inside ``torch.compile`` or ``DistributedDataParallel``.
        state_dict: of the unconverted network or of the same part of it, also as these wrappers write it.

    Raises:
        ValueError: a weight is missing that is not new, or one is there that the network does not have; or the network is on the
            meta device, where its new weights have no values.
        RuntimeError: a weight of another shape.
    """
    while isinstance(
        inner := next((model._modules[name] for name in _WRAPPERS if name in model._modules), None), nn.Module
    ):
        model = inner
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "the network is on the meta device, where new weights have no values and a checkpoint does not "
            "contain them; convert the network on the device that runs it"
        )
    values = dict(state_dict)
    for prefix in _WRAPPERS * 2:
        if values and all(name.startswith(f"{prefix}.") for name in values):
            values = {name.removeprefix(f"{prefix}."): value for name, value in values.items()}
    missing, unexpected = model.load_state_dict(values, strict=False)
    new = tuple(
        ".".join([*name.split("."), part, ""]).removeprefix(".")
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, XVolution)
        for part in _NEW_PARTS
    )
    missing = [name for name in missing if not name.startswith(new)]
    wrong = [f"lacks {_listed(missing)}"] * bool(missing) + [f"has {_listed(unexpected)} too"] * bool(unexpected)
    if wrong:
        raise ValueError(
            f"the checkpoint {' and '.join(wrong)}; give a checkpoint of the network before its conversion "
            "to X-volution, or of the same part of it"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
