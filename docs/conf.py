"""Configuration of Sphinx; build with ``sphinx-build -W --keep-going -b html docs OUT``."""

import os
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_extensions"))

project = "mpfast"
author = "The mpfast developers"
# The version has one place.
version = release = re.findall(
    r'^version = "(.+)"$', (DOCS.parent / "pyproject.toml").read_text("utf-8"), re.MULTILINE
)[0]
language = "en_GB"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "command_line",
    "mathml",
]
exclude_patterns = ["_build", "**/README.md"]

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

# Docstrings name what they refer to in single backticks.
default_role = "py:obj"
napoleon_numpy_docstring = True
napoleon_google_docstring = False
# Fields of a dataclass are documented once, in its docstring.
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_preprocess_types = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
# The reference is built without PyTorch and the toolkits.
autodoc_mock_imports = ["torch", "transformers", "lightning", "peft", "llmcompressor", "compressed_tensors"]
autodoc_mock_imports += ["modelopt", "olive", "pydantic"]

html_theme = "furo"
html_math_renderer = "mathml"
# Where a host of documentation says that the pages will lie.
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL", "")
html_title = f"mpfast {release}"
html_static_path = ["_static"]
html_css_files = ["mpfast.css"]
html_show_sphinx = False
html_show_copyright = False

# What lies outside of this folder is offered as a file.
_OUTSIDE = re.compile(r"\]\(((?:\.\./)+(?:(?:benchmarks|examples|tests)/|CONTRIBUTING\.md))")


def _link_to_files(app, docname, source):
    source[0] = _OUTSIDE.sub(r"](path:\1", source[0])


def setup(app):
    """Register what is changed in the sources as they are read."""
    app.connect("source-read", _link_to_files)
