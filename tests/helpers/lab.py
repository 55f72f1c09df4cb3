"""The notebooks of the lab: `solutions.ipynb` is the source, `exercises.ipynb` is written from it for students.

``python -m tests.helpers.lab`` writes it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nbconvert.exporters import NotebookExporter
from nbconvert.preprocessors import ClearOutputPreprocessor, Preprocessor
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[2] / "notebooks" / "lab"
SOURCE, STUDENTS = FOLDER / "solutions.ipynb", FOLDER / "exercises.ipynb"
TEXT, CODE = "YOUR ANSWER HERE", r"\1# YOUR CODE HERE\n\1raise NotImplementedError()"
_REGION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$", re.M | re.S)


class ClearSolutions(Preprocessor):
    """Put a stub in place of each solution, as nbgrader's preprocessor of this name does, whose marks these are."""

    def preprocess_cell(self, cell: NotebookNode, resources: Any, index: int) -> tuple[NotebookNode, Any]:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source = _REGION.sub(CODE, cell.source) if cell.cell_type == "code" else TEXT
        return cell, resources


def exercises() -> str:
    """The students' notebook, as a file."""
    exporter = NotebookExporter(preprocessors=[ClearOutputPreprocessor, ClearSolutions])
    return exporter.from_filename(str(SOURCE))[0]


if __name__ == "__main__":
    STUDENTS.write_text(exercises(), "utf-8")
