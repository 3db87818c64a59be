"""Nothing is collected while modules load, and what they left is left alone."""

import gc
from collections.abc import Iterator

import pytest

from triskel.cli.quick_import import loading


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    enabled = gc.isenabled()
    yield
    gc.unfreeze()
    (gc.enable if enabled else gc.disable)()


def test_what_is_there_afterwards_is_out_of_the_collectors_way() -> None:
    gc.enable()
    gc.unfreeze()
    with loading():
        assert not gc.isenabled()
        made = [[number] for number in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(made)
    assert len(gc.get_objects()) < gc.get_freeze_count()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    with loading():
        pass
    assert not gc.isenabled()


def test_an_import_that_fails_leaves_the_collector_on() -> None:
    gc.enable()
    with pytest.raises(ImportError), loading():
        raise ImportError("no module")
    assert gc.isenabled()
