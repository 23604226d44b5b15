"""A hook of mkdocs: the pages that are made of results are files of the site, and of no commit."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what ``benchmarks.pages`` writes."""
    pages = _written(Path(config.config_file_path).parent)
    for path in sorted(pages.rglob("*.*")):
        files.append(File.generated(config, path.relative_to(pages).as_posix(), abs_src_path=str(path)))
    return files


@functools.cache
def _written(checkout: Path) -> Path:
    """Once a process: ``mkdocs serve`` builds the site after each change of a text."""
    pages = checkout / "build" / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    # In a process of its own, with the checkout's modules, which mkdocs does not have on its path.
    subprocess.run([sys.executable, "-m", "benchmarks.pages", "--output", str(pages)], cwd=checkout, check=True)
    return pages
