"""The reference: a page for each public name, made of its docstring. ``make docs`` builds it, offline."""

import importlib
import re
import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

project, author = "tlora", "the tlora authors"
version = release = installed("tlora")
html_title = f"tlora {version}"
extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_show_copyright = html_show_sourcelink = html_copy_source = False
pygments_style, pygments_dark_style = "friendly", "github-dark"

templates_path = ["templates"]
default_role = "py:obj"
autosummary_ignore_module_all = False
autodoc_typehints = "none"  # said in the docstring, with shapes
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "inherited-members": "object,TrainerCallback"}
numpydoc_show_class_members = False  # autodoc does
# A name in backticks that leads nowhere is an error, but for those of other projects. Types may be words.
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*"), ("py:.*", r"(peft|transformers|datasets|torch|pandas|matplotlib)\..*")]

WORDS = {"tlora": "The pipeline, from a model and a task to an adapter", "viz": "Pictures, explorers and pages"}


def write_lists() -> None:
    """One list a package, in the order of the pipeline: what is public has a page, and nothing else has."""
    (HERE / "reference").mkdir(exist_ok=True)
    for package, title in WORDS.items():
        stub = Path(importlib.import_module(package).__file__).with_name("__init__.pyi").read_text()
        names = "\n".join(f"   {name}" for name in re.findall(r" as (\w+)$", stub, re.M))
        about = f".. automodule:: {package}\n   :no-members:\n   :no-inherited-members:\n"
        pages = f".. currentmodule:: {package}\n\n.. autosummary::\n   :toctree:\n   :nosignatures:\n\n{names}\n"
        text = f"{title}\n{'=' * len(title)}\n\n{about}\n{pages}"
        (HERE / "reference" / f"{package}.rst").write_text(text)


write_lists()
