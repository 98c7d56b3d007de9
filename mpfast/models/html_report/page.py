"""The file that a page is: the template, the styles and the scripts, and the data that they show.

Texts of the data come from files that nobody vouches for. They reach the browser as JSON in an element that is no
script, and the scripts put them into the page as text, never as markup. The page forbids the browser to load anything,
and to run any script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from mpfast.models.layer_json import jsonable
from mpfast.support import design, printable

__all__ = ["filled_page"]

# One script when they are put together, in this order: what is used before a file is done is defined in those above it.
_SCRIPTS = (
    "elements.js",
    "data.js",
    "chart.js",
    "heat_map.js",
    "table_rows.js",
    "table.js",
    "pair.js",
    "budget.js",
    "downloads.js",
    "tables.js",
    "main.js",
)


def filled_page(title: str, content: Mapping[str, Any]) -> str:
    """Return the page that shows `content`, whose entries the scripts name."""
    files = resources.files(__package__)
    script = "\n".join((files / "scripts" / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    data = json.dumps(jsonable(content), allow_nan=False, separators=(",", ":"))
    style = design() + (files / "style.css").read_text(encoding="utf-8")
    pieces = {
        "TITLE": html.escape(printable(title)),
        "POLICY": f"default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'",
        "STYLE": style,
        "SCRIPT": script,
        # No text may end the element that holds the data.
        "DATA": data.replace("<", "\\u003c"),
    }
    page = (files / "template.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: pieces[found[1]], page)


def _digest(text: str) -> str:
    """Return what a policy knows a script or a style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
