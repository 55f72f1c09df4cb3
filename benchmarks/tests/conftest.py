"""Fixtures of the product's tests that the laboratory's use too."""

from jaxtyping import install_import_hook

import tests.helpers.shapes  # noqa: F401  (the hook finds it by name)

# As in tests/conftest.py: shapes are checked at every call while tests run.
install_import_hook(["tlora", "benchmarks.lab"], "tests.helpers.shapes.check_shapes")

pytest_plugins = ["tests.helpers.commands"]
