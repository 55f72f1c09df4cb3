"""What the tests of this folder share."""

from __future__ import annotations

import pytest

import tlora
from tests.helpers.subspaces import RANKS, prepared


@pytest.fixture(scope="module")
def llama():
    return prepared("llama")


@pytest.fixture(scope="module")
def found(llama):
    model, _, subspaces, batch = llama
    return tlora.gradient_capture(model, [batch], subspaces, RANKS, task="held out", progress=False)
