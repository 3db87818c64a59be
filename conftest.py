"""Types and shapes are checked in every test, doctests in `src` included."""

import covered  # pyright: ignore[reportMissingImports]
import pytest
import shapes  # pyright: ignore[reportMissingImports]

shapes.install()  # before anything of triskel is imported


def pytest_configure(config: pytest.Config) -> None:
    """Have what ran told, where that is asked for."""
    if covered.PROBES is not None:
        config.pluginmanager.register(covered)
