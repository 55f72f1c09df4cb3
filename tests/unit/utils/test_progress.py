"""Progress bars: shown to a person, silent where the caller or the environment says so."""

import os
import subprocess
import sys

import pytest

CODE = """
import sys, tqdm.auto, tqdm.notebook
tqdm.auto.tqdm = tqdm.notebook.tqdm if {notebook} else tqdm.std.tqdm
from tlora.utils.progress import progress_bar
print(progress_bar(range(2), show={show}).disable)
"""


@pytest.mark.parametrize("notebook", [False, True])
@pytest.mark.parametrize(("show", "environment", "hidden"), [(True, "", False), (False, "", True), (True, "1", True)])
def test_a_bar_is_hidden_by_the_caller_or_the_environment(show, environment, hidden, notebook):
    own = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    own |= {"TQDM_DISABLE": environment} if environment else {}
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(show=show, notebook=notebook)],
        env=own,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == str(hidden)
