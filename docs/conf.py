"""The site: guide, notebooks as stored, and a page for each public name. ``make docs`` builds it, offline."""

import re
import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import made  # noqa: E402

project, author = "tlora", "the tlora authors"
version = release = installed("tlora")
html_title = f"tlora {version}"
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_design",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "templates", "pages", "notebooks/data", "notebooks/lab"]
html_theme = "furo"
html_static_path, html_extra_path = ["static"], ["pages"]
html_css_files, html_js_files = ["site.css"], ["site.js"]
html_search_scorer = str(HERE / "static" / "search_order.js")
html_show_copyright = html_show_sourcelink = html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"

# Notebooks show what is stored in them.
nb_execution_mode = "off"
nb_mime_priority_overrides = [("html", "image/gif", 0)]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_block"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

templates_path = ["templates"]
default_role = "py:obj"
autosummary_ignore_module_all = False
autosummary_context = {"seen_in": made.seen_in()}
autodoc_typehints = "none"  # said in the docstring, with shapes
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "inherited-members": "object,TrainerCallback"}
numpydoc_show_class_members = False  # autodoc does
# A name in backticks that leads nowhere is an error, but for those of other projects. Types may be words.
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", ".*"),
    ("py:obj", "Job"),
    ("py:.*", r"(peft|transformers|datasets|torch|pandas|matplotlib)\..*"),
]


def visit_math(self: Any, node: Any) -> None:
    """A formula as MathML, which browsers draw themselves: no script, no fonts to fetch."""
    self.body.append(convert(node.astext(), display="block" if node.tagname == "math_block" else "inline"))
    raise nodes.SkipNode


def say_level(sphinx: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Headings of the navigation say their level to screen readers, which Sphinx leaves out."""
    tree = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')


def find_anywhere(sphinx: Any, env: Any, node: Any, content: Any) -> Any:
    """A name in backticks that stands in another module than the page's: `Sensitivity` from `tlora.calibrate`."""
    if node.get("refdomain") != "py" or node.get("refspecific"):
        return None
    node["refspecific"] = True  # now the end of a full name is enough
    place = env, node["refdoc"], sphinx.builder, node["reftype"], node["reftarget"], node, content
    return env.domains["py"].resolve_xref(*place)


def name_once(sphinx: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """A page of sources links back to what it defines by one module's name, though the reference has two for some."""
    if page.startswith("_modules/"):
        link = r'(reference/((?:\w+\.)+)(\w+)\.html#)[\w.]*\b\3((?:\.\w+)?")'
        context["body"] = re.sub(link, r"\1\2\3\4", context["body"])


def setup(sphinx: Any) -> None:
    """Called by Sphinx."""
    made.make()
    sphinx.add_html_math_renderer("mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math, None))
    sphinx.connect("missing-reference", find_anywhere)
    sphinx.connect("source-read", made.source_read)
    sphinx.connect("html-page-context", name_once)
    sphinx.connect("html-page-context", say_level, priority=900)  # after furo
