"""How much memory a process and all its descendants hold, sampled while they run.

Proportional set size: a page shared by k processes counts 1/k in each, so that the sum over a tree
counts every page once. Linux only.
"""

import ctypes
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

PERIOD_S = 0.1
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
MB = 1e6


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends, so that none leaves the tree."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def parents() -> dict[int, int]:
    """Return the parent of every process."""
    found: dict[int, int] = {}
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                stat = (place / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:  # it has ended
                continue
            found[int(place.name)] = parent_of(stat)
    return found


def parent_of(stat: str) -> int:
    """Return the parent from a line of /proc/PID/stat, whose second field may hold anything.

    >>> parent_of("12 (a) b) S 7 12 12 0")
    7
    """
    return int(stat.rpartition(")")[2].split()[1])


def descendants(root: int, parent: dict[int, int]) -> set[int]:
    """Return all processes below one, without it.

    >>> sorted(descendants(1, {1: 0, 2: 1, 3: 2, 4: 9}))
    [2, 3]
    """
    found: set[int] = set()
    new = {root}
    while new:
        new = {pid for pid, above in parent.items() if above in new} - found
        found |= new
    return found


def held(pids: Iterable[int]) -> float:
    """Return the proportional set size of some processes together, in MB."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024 / MB


class Sampler:
    """Watches everything below this process while a `with` block runs.

    Attributes:
        peak_mb: The largest sum seen.
        most: The most processes seen at once.
        samples: How many samples were taken.
        cost_s: Processor time that sampling took.
    """

    def __init__(self) -> None:
        self.peak_mb, self.most, self.samples, self.cost_s = 0.0, 0, 0, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            begun = time.thread_time()
            below = descendants(os.getpid(), parents())
            self.peak_mb = max(self.peak_mb, held(below))
            self.most, self.samples = max(self.most, len(below)), self.samples + 1
            self.cost_s += time.thread_time() - begun
