"""Progress bars: shown to a person, silent where the caller or the environment says so."""

import os
import subprocess
import sys
import threading

import pytest

from tlora.utils.progress import StoppedError, bars_for, note_progress, progress_bar, report_progress

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


def test_a_listener_hears_of_the_bars_of_its_thread_while_it_listens():
    heard = []
    with report_progress(lambda *bar: heard.append(bar)), bars_for("of the base"):
        other = threading.Thread(target=lambda: list(progress_bar(range(3), show=False, desc="another")))
        other.start()
        other.join()
        bar = progress_bar("ab", show=False, desc="loss", unit="batch")
        bar.mininterval = 0
        for letter in bar:
            note_progress(bar, f"at {letter}")
    list(progress_bar(range(3), show=False, desc="later"))
    assert heard[0] == ("loss of the base", 0, 2)
    assert {("loss of the base, at a", 0, 2), ("loss of the base, at b", 1, 2)} <= set(heard)
    assert heard[-1] == ("loss of the base, at b", 2, 2)
    assert {words.split(",")[0] for words, _, _ in heard} == {"loss of the base"}


def test_a_bar_that_is_stopped_leaves_the_others_alone():
    """An error while a bar is drawn would keep tqdm's lock, and every other thread that draws one would wait for it."""
    stopping, done = threading.Event(), []

    def work():
        with report_progress(lambda *bar: stopping.set(), stopping):
            bar = progress_bar(total=3, show=False, desc="stopped")
            bar.mininterval = 0
            try:
                for _ in range(3):
                    note_progress(bar, "a step")
                    done.append(1)
            except StoppedError:
                done.append("stopped")

    first = threading.Thread(target=work)
    first.start()
    first.join()
    assert done == ["stopped"]
    other = threading.Thread(target=lambda: list(progress_bar(range(3), show=True, leave=False)), daemon=True)
    other.start()
    other.join(20)
    assert not other.is_alive()
