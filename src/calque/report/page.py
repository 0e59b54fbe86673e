"""Pages: one HTML file each, that opens anywhere, asks nothing of a network and runs no script."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from calque import disk

_HERE = Path(__file__).parent


def write_page(
    file: Path,
    template: str,
    values: Mapping[str, Any],
    filters: Mapping[str, Callable[..., str]] | None = None,
) -> Path:
    """Write a page from a template beside this file; all values are escaped, the style stands in the page.

    Raises:
        DataError: A full disk.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters or {}
    style = Markup((_HERE / "report.css").read_text(encoding="utf-8"))
    disk.write_text(file, environment.get_template(template).render(style=style, **values))
    return file
