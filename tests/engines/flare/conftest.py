"""What tests of sites share: a server and its three sites in this process."""

# ruff: noqa: ANN401 - helpers are loaded by path

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sites = runpy.run_path(str(Path(__file__).parents[2] / "helpers" / "sites.py"))


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    sites["hurry"](monkeypatch)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Three sites and a server whose models are loaded once."""
    with pytest.MonkeyPatch.context() as patch:
        sites["hurry"](patch)
        found = sites["Party"](sites["house"](tmp_path_factory.mktemp("party")))
    yield found
    found.close()


@pytest.fixture
def party(shared: Any) -> Iterator[Any]:
    """The same, every call as it is."""
    plain = shared.twist
    yield shared
    shared.twist = plain
