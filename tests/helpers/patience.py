"""How long a test waits for processes: as long as the machine needs, as busy as it is.

A test names seconds that are plenty on two idle cores. They are multiplied by how much longer a
known piece of work takes here: measured at the first wait of a session, and again where patience
would end, since a machine gets busy in between.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable

WORK = "import torch"
IDLE_S = 1.5
"""Seconds that a new process takes for the work on idle cores; Xeon of 2023, files in memory."""
NAME = "TRISKEL_SLOWNESS"
"""Where the factor is kept: a process started by a test knows it too, and a person may set it."""


def slowness(*, again: bool = False) -> float:
    """Return the largest factor measured in this session, at least 1."""
    known = os.environ.get(NAME)
    if known is None or again:
        start = time.monotonic()
        subprocess.run([sys.executable, "-c", WORK], check=True)
        factor = (time.monotonic() - start) / IDLE_S
        os.environ[NAME] = str(max(1.0, factor, float(known or 1)))
    return float(os.environ[NAME])


def patience(seconds: float) -> float:
    """Return how long to wait here for what takes at most this long on idle cores."""
    return seconds * slowness()


def until(there: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Wait for something; fail where it does not come."""
    start, allowed = time.monotonic(), patience(seconds)
    while not there():
        if time.monotonic() - start > allowed:
            allowed = seconds * slowness(again=True)
            in_time = there() or time.monotonic() - start < allowed
            assert in_time, f"{what} did not come in {allowed:.0f} s"
        time.sleep(0.1)


def said(process: "subprocess.Popen[str]", seconds: float) -> str:
    """Wait for a process to end; return what it wrote, or fail with that."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.communicate(timeout=patience(seconds))[0]
    try:
        return process.communicate(timeout=seconds * slowness(again=True))[0]
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"{process.args!r} did not end: {late.output!r}") from late
