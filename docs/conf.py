"""How the documentation is built: ``make docs`` (warnings are errors)."""

import importlib.util

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
