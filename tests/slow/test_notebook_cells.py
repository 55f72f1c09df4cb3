"""Every cell of every notebook is interrupted where it takes long, run again, and run once more."""

import os
import queue
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel

pytestmark = [pytest.mark.slow, pytest.mark.packaged]

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
PATIENCE = 2.0
"""Seconds after which a cell is interrupted the first time."""


def run(client, source, interrupt=None, seconds=300):
    """Name of the error that a cell ends with, None without one; interrupted when it takes longer than `PATIENCE`."""
    message = client.execute(source, allow_stdin=False)
    until = time.monotonic() + seconds
    patience = PATIENCE if interrupt else seconds
    while time.monotonic() < until:
        try:
            reply = client.get_shell_msg(timeout=patience)
        except queue.Empty:
            interrupt()
            patience = seconds
            continue
        if reply["parent_header"].get("msg_id") == message:
            return reply["content"].get("ename")
    pytest.fail(f"this cell did not end:\n{source}")


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_cells_may_be_interrupted_and_run_twice(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    environment = os.environ | {"TLORA_NOTEBOOK_STEPS": "6", "OMP_NUM_THREADS": "1", "EAGER_IMPORT": "1"}
    manager, client = start_new_kernel(cwd=str(NOTEBOOKS), env=environment)
    interrupted = []
    try:
        # an import that broke off cannot be done again, in torch and others: with EAGER_IMPORT these are all of them
        assert run(client, "import tlora, viz") is None
        for cell in cells:
            error = run(client, cell.source, manager.interrupt_kernel)
            assert error in (None, "KeyboardInterrupt"), cell.id
            interrupted += [cell.id] if error else []
            assert run(client, cell.source) is None, f"{cell.id}, run again"
            assert run(client, cell.source) is None, f"{cell.id}, run once more"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert interrupted, "no cell took long enough to be interrupted"
