"""The records of one item in one JSON file, so that a later call skips what is done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from xvolution.bench.conditions import device_conditions, versions

_PACKAGES = ("torch", "torchvision", "timm", "triton", "xvolution")


class Store:
    """Records by key, written to ``folder/NAME.json`` after every one of them.

    Args:
        name: of the item.
        folder: where the file is written.
        settings: what decides the figures, as JSON values. Files of other settings are refused, not mixed in.
        earlier: folders with files of earlier calls, whose records count as done; that of ``folder`` always does.

    Raises:
        SystemExit: a file was written under other settings.
    """

    def __init__(self, name: str, folder: Path, settings: Mapping[str, Any], earlier: Iterable[Path] = ()) -> None:
        self.path = folder / f"{name}.json"
        self.settings = json.loads(json.dumps(settings))
        self.records: dict[str, Any] = {}
        for path in (*(other / self.path.name for other in earlier), self.path):
            if path.exists():
                self.records |= self._read(path)

    def _read(self, path: Path) -> dict[str, Any]:
        written = json.loads(path.read_text(encoding="utf-8"))
        if written["settings"] != self.settings:
            raise SystemExit(
                f"{path} holds results of other settings ({written['settings']}, not {self.settings}); write to another folder "
                "with --output, or leave the file's folder out of --earlier"
            )
        return written["records"]

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """Keep a record with the conditions that it was made under; the file is whole at any time."""
        conditions = {**device_conditions(), **versions(_PACKAGES)}
        self.records[key] = {**record, "conditions": conditions}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        text = json.dumps({"settings": self.settings, "records": self.records}, indent=1)
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, self.path)
