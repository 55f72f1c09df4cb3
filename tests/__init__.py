"""The tests."""

import os

# Some tests fork, and a fork of a process whose torch has threads waits for them for ever. Before any import of torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
