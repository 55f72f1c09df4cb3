"""Who watches a cell: a person, or a tool that stores its output."""

import pytest

from tests.helpers.shells import Shell
from tlora.utils.front_end import has_front_end
from tlora.utils.progress import is_shown


@pytest.mark.parametrize(
    ("shell", "is_widget", "is_bar"),
    [
        (None, False, True),
        (object(), False, True),  # IPython in a terminal
        (Shell({"allow_stdin": True}), True, True),  # JupyterLab, Notebook, VS Code
        (Shell({"allow_stdin": False}), False, False),  # nbconvert, papermill, nbval
        (Shell({}), True, True),
    ],
)
def test_widgets_need_a_front_end_and_bars_somebody_who_waits(shell, is_widget, is_bar, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    assert has_front_end() is is_widget
    assert is_shown(True) is is_bar
    assert not is_shown(False)
