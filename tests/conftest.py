"""Fixtures that every test may use."""

from jaxtyping import install_import_hook

import tests.shapes  # noqa: F401  (the hook finds it by name)

# Shapes are checked at every call while tests run, and cost nothing otherwise. Before any import of tlora.
install_import_hook("tlora", "tests.shapes.check_shapes")
