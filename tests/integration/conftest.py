"""The packaged models, loaded once for all tests: leave them as they were, or work on a `copy.deepcopy`."""

import pytest

from tlora.models.loading import load_model


@pytest.fixture(scope="session")
def smollm():
    """SmolLM2-135M on the CPU in float32, and its tokenizer."""
    return load_model("smollm2-135m", device="cpu")


@pytest.fixture(scope="session")
def minilm():
    """MiniLM as a classifier on the CPU in float32, and its tokenizer."""
    return load_model("minilm", device="cpu")
