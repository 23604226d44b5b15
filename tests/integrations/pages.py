"""The code of the documentation's pages, run as a reader would run it."""

import re
from pathlib import Path
from typing import Any

_DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code_of(page: str, section: str | None = None) -> str:
    """The Python code of a page, or of one of its sections, named by its heading.

    Raises:
        ValueError: there is no such section, or no code.
    """
    text = (_DOCS / page).read_text()
    if section is not None:
        parts = re.split(r"^## ", text, flags=re.MULTILINE)
        text = next((part for part in parts if part.startswith(f"{section}\n")), "")
    blocks = _BLOCK.findall(text)
    if not blocks:
        raise ValueError(f"{page} has no code in {section or 'it'}")
    return "\n".join(blocks)


def run(page: str, section: str | None = None, **given: Any) -> dict[str, Any]:
    """Run that code with the names in ``given``; what it defines."""
    names = {"__name__": "__main__", **given}
    exec(compile(code_of(page, section), f"{page} {section or ''}", "exec"), names)
    return names
