"""Waiting as long as the machine needs: never cut short by load, never endless."""

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

waits = runpy.run_path(str(Path(__file__).with_name("patience.py")))
NAME, IDLE_S, patience, until, said = (
    waits[name] for name in ("NAME", "IDLE_S", "patience", "until", "said")
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that only waits and work move on; `takes` is how long the work takes, in turn."""
    found = SimpleNamespace(now=0.0, takes=list[float]())

    def passes(seconds: float) -> None:
        found.now += seconds

    ours = until.__globals__
    real = SimpleNamespace(monotonic=lambda: found.now, sleep=passes)
    monkeypatch.setitem(ours, "time", real)
    run = SimpleNamespace(run=lambda *_, **__: passes(found.takes.pop(0)))
    monkeypatch.setitem(ours, "subprocess", run)
    monkeypatch.setenv(NAME, "1")  # so that what a test leaves there is taken back
    monkeypatch.delenv(NAME)
    return found


def test_patience_is_measured_once_and_is_never_less_than_what_was_named(
    clock: SimpleNamespace,
) -> None:
    clock.takes += [3 * IDLE_S]
    assert patience(10) == pytest.approx(30)
    assert patience(1) == pytest.approx(3)
    assert clock.takes == []


def test_a_fast_machine_waits_no_shorter(clock: SimpleNamespace) -> None:
    clock.takes += [IDLE_S / 4]
    assert patience(10) == 10


def test_what_comes_late_on_a_machine_that_got_busy_is_waited_for(clock: SimpleNamespace) -> None:
    clock.takes += [IDLE_S, 5 * IDLE_S]
    until(lambda: clock.now > 45, "it", 10)
    assert clock.takes == []


def test_what_never_comes_is_named_once_the_machine_was_measured_again(
    clock: SimpleNamespace,
) -> None:
    clock.takes += [IDLE_S, 2 * IDLE_S, 2 * IDLE_S]
    with pytest.raises(AssertionError, match="the sun did not come in 20 s"):
        until(lambda: False, "the sun", 10)


def test_a_process_that_does_not_end_is_told_with_what_it_wrote(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = "import time; print('here', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    monkeypatch.setenv(NAME, "1")
    try:
        with pytest.raises(AssertionError, match="did not end"):
            said(process, 0.2)
    finally:
        process.kill()
        process.communicate()
