"""How the documentation is built: ``make docs`` (warnings are errors)."""

import importlib.util

from docutils import nodes
from sphinx.application import Sphinx

import memifrt

project = "memifrt"
author = "the memifrt contributors"
copyright = "the memifrt contributors"
version = release = memifrt.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# PyGObject has no wheel; without it the page has the class all the same.
autodoc_mock_imports = [] if importlib.util.find_spec("gi") else ["gi"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
nitpicky = False
intersphinx_mapping: dict[str, tuple[str, None]] = {}  # a build needs no network

html_theme = "furo"
html_title = f"memifrt {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"source_edit_link": ""}

#: The longest word of code, in characters, that has room in each place on a phone.
LONGEST_WORD = 30


def mark_short_words(app: Sphinx, doctree: nodes.document) -> None:
    """Give code without long words the class ``words``: site.css keeps its words whole."""
    for code in doctree.findall(nodes.literal):
        if all(len(word) <= LONGEST_WORD for word in code.astext().split()):
            code["classes"].append("words")


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", mark_short_words)
