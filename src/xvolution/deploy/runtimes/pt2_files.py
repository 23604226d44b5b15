"""Checks of a .pt2 archive's contents, without running any of it.

``torch.export.load`` unpickles the objects in an archive, evaluates the expressions of its shapes, and accepts any function of
torch's modules as a step of its graph. An archive may come from an untrusted source, so all of these are checked first.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from xvolution.deploy.runtimes.base import ExportError

_EXTRA = "extra/"
#: Folders of an archive whose entries are machine code or pickles by their nature.
_CODE = ("data/aotinductor/", "data/executorch/", "mtia/")
_PICKLED = re.compile(r"data/constants/(custom_obj|opaque_obj)\w*")
#: Operators of torch's dispatcher that compute, switches around them, and arithmetic on sizes. aten.from_file maps any file.
_COMPUTES = re.compile(
    r"torch\.ops\.aten\.(?!from_file)\w+\.\w+|torch\.ops\.higher_order\.wrap_with_(autocast|set_grad_enabled)"
    r"|torch\.sym_\w+|math\.(ceil|floor|trunc|sqrt)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|abs|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
_ARITHMETIC = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.keyword, ast.Subscript),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
#: Sizes, and functions of sympy and torch on them.
_NAMES = re.compile(
    r"L|-?[a-z]{1,3}\d+|int_oo|oo|true|false|Symbol|Integer|Rational|Float|Add|Mul|Pow|Abs|Max|Min|Mod|Eq|Ne|Lt|Le|Gt|Ge"
    r"|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|And|Or|Not|Piecewise"
    r"|FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|PowByNatural"
    r"|FloatPow|FloatTrueDiv|IntTrueDiv|TruncToInt|TruncToFloat|RoundToInt|RoundDecimal|ToFloat|Identity"
)
#: Methods of the inputs L["x"] that guards ask.
_OF_TENSORS = ("size", "stride", "storage_offset", "dim", "ndim", "shape")
#: sympy evaluates texts that it is given for numbers; one name calls nothing.
_TEXTS = re.compile(r"\w+|[-+\d.e]+")


def require_plain(path: str | os.PathLike[str]) -> None:
    """Require that an archive holds only weights as plain numbers and a graph of known tensor operators.

    Raises:
        ExportError: it holds anything else, or is not an archive of ``torch.export``.
        OSError: the file cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        entries = _entries(archive)
        models = [name for name in entries if name.startswith("models/") and name.endswith(".json")]
        if not models:
            raise ExportError(
                "it holds no program of torch.export, or was written by a torch version before 2.9; export it again"
            )
        for name in entries:
            if name.startswith(_CODE) or _PICKLED.fullmatch(name):
                raise ExportError(f"it was refused, because its entry {name} is code or a pickled object")
            if name.endswith(".pt"):
                _require_tensors(archive.read(entries[name]), name)
            elif name.endswith("_config.json"):
                _require_numbers(json.loads(archive.read(entries[name])), name)
        for name in models:
            _require_computing(json.loads(archive.read(entries[name])))


def write_extra_files(path: str | os.PathLike[str], texts: Mapping[str, str]) -> None:
    """Add texts to an archive; ``torch.export.load`` returns them as ``extra_files``."""
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        for name, text in texts.items():
            archive.writestr(f"{root}/{_EXTRA}{name}", text)


def read_extra_files(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that `write_extra_files` added; nothing else of the archive is read."""
    with zipfile.ZipFile(path) as archive:
        entries = _entries(archive)
        return {
            name.removeprefix(_EXTRA): archive.read(entry).decode("utf-8")
            for name, entry in entries.items()
            if name.startswith(_EXTRA)
        }


def _entries(archive: zipfile.ZipFile) -> dict[str, str]:
    """Every entry by its name inside the archive's own folder.

    Raises:
        ExportError: torch might read other entries than the ones checked here, because it ignores case and uses the folder of
            the first entry.
    """
    names = archive.namelist()
    if len({name.partition("/")[0] for name in names}) > 1 or len({name.lower() for name in names}) < len(names):
        raise ExportError("it was refused, because several entries have the same name")
    return {name.partition("/")[2]: name for name in names}


def _require_tensors(pickled: bytes, name: str) -> None:
    try:
        torch.load(io.BytesIO(pickled), weights_only=True) if pickled else None
    except Exception as error:
        raise ExportError(
            f"it was refused, because its entry {name} holds pickled objects other than tensors, which could run code"
        ) from error


def _require_numbers(config: Any, name: str) -> None:
    for entry in _dictionaries(config):
        if entry.get("use_pickle"):
            raise ExportError(f"it was refused, because {name} refers to pickled weights, which could run code")


def _require_computing(model: Any) -> None:
    for entry in _dictionaries(model):
        target = entry.get("target")
        if isinstance(target, str) and "inputs" in entry and not _COMPUTES.fullmatch(target):
            raise ExportError(
                f"it was refused, because its graph calls {target[:80]}, which is not a known tensor operator"
            )
        for code in (entry.get("expr_str"), *entry.get("guards_code", ())):
            if code is not None and not _is_arithmetic(code):
                raise ExportError(f"it was refused, because {str(code)[:80]!r} is not arithmetic on sizes")


def _is_arithmetic(code: Any) -> bool:
    """Whether an expression consists of numbers, sizes and known functions."""
    try:
        nodes = list(ast.walk(ast.parse(code, mode="eval")))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return False
    return all(map(_computes, nodes))


def _computes(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return _NAMES.fullmatch(node.id) is not None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _TEXTS.fullmatch(node.value) is not None
    if isinstance(node, ast.Attribute):
        return node.attr in _OF_TENSORS
    return isinstance(node, _ARITHMETIC)


def _dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    """All objects of a JSON document."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
