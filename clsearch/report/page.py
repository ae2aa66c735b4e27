"""The report as one HTML page: nothing is loaded from anywhere, and no script runs."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib.resources import files

from clsearch.report.document import Document


def page(document: Document, images: Mapping[str, bytes]) -> str:
    """The page, `images` being the figures as SVG by name. Every value is escaped."""
    from jinja2 import Environment, StrictUndefined

    source = files("clsearch.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    inline = {name: base64.b64encode(data).decode("ascii") for name, data in images.items()}
    return environment.from_string(source).render(document=document, images=inline)
