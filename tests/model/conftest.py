"""What is tested here includes the counting of what a model costs."""

import counted  # pyright: ignore[reportMissingImports]
import pytest


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> None:
    counted.anew(monkeypatch)
