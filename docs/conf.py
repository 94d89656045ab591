"""How `make docs` builds the pages: MyST Markdown, the API from docstrings, a theme that asks no host for anything.

The source folder is the repository, not docs/: links between docs/, the README and the pages beside components,
pipelines, manifests and benchmarks work in the built pages as they do in the repository, and the build checks them all.
"""

import re

from pygments.lexers.special import TextLexer

from stereo_core import __version__

project = "stereo-pipelines"
author = "the authors of stereo-pipelines"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["*.md", *(f"{folder}/*.md" for folder in ("docs", "components", "manifests", "benchmarks"))]
include_patterns += ["components/*/*.md", "pipelines/*/*.md", "stereo_core/models/starter/*.md"]
exclude_patterns = [".*", "*.egg-info", "build", "runs", "results", "tests"]
suppress_warnings = ["toc.not_included"]  # the README, and the page of each component and pipeline: links lead there
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # every heading is an anchor, by GitHub's rule

html_theme = "furo"
html_title = f"stereo-pipelines {release}"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_additional_pages = {"index": "index.html"}  # leads to docs/index.html
html_static_path, html_css_files = ["static"], ["pages.css"]
templates_path = ["templates"]

napoleon_use_param = False  # `left, right` of a docstring stay one entry
napoleon_use_rtype = False
default_role = "code"  # `name` in a docstring is code, as in Markdown
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
maximum_signature_line_length = 100
# Types of other libraries have no page here, and no other site is asked for its index.
nitpick_ignore_regex = [("py:.*", r"(?!stereo_core\.).*")]


def setup(app) -> None:
    """GitHub draws mermaid; here its text is shown. `|gt|` and FOLDER@best in a docstring are text, not RST."""
    app.add_lexer("mermaid", TextLexer)
    app.connect("autodoc-process-docstring", as_text)


def as_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Escape the marks of RST that docstrings, which are Markdown, use as text."""
    lines[:] = [re.sub(r"(`[^`]*`)|([|@])", lambda found: found[1] or "\\" + found[2], line) for line in lines]
