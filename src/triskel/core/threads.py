"""How torch's threads wait, and how many there are: settled before torch is imported.

torch computes on OpenMP's threads, GNU's in its Linux wheels. By default one that is done early
spins until the others are: on idle cores that is fast, on a busy machine it takes the very time
that the others wait for. Sleeping at once costs a third of the speed on idle cores, and is up to
thirty times as fast on very busy ones (docs/performance.md). So threads sleep at once where cores
are taken, and elsewhere after a millisecond or less: as fast, and bounded. OpenMP reads
`OMP_WAIT_POLICY` and `OMP_NUM_THREADS` once, as it loads (OpenMP 5.2, section 21.2), and other
runtimes than GNU's read them too. torch knows which cores it may run on, but neither a container's
share of them nor who else computes.

Another number of threads sums in another order. So a run writes down how many it began with, and
takes them up again when it goes on. What a user set is never changed.
"""

import json
import math
import os
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import fmean

COUNT, OURS = "OMP_NUM_THREADS", "TRISKEL_THREADS"
"""What OpenMP reads, and beside it the same number where it was chosen here and not by a user."""
SLEEPING = {"OMP_WAIT_POLICY": "passive"}
"""A thread that waits sleeps at once."""
BRIEF = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "20000"}
"""It looks so often first, for about a millisecond; GNU's OpenMP by itself looks 300,000 times."""
WAITS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""With any of these a user says how threads wait."""
RUN = "process"
"""The row of `choices.json` that speaks of the whole process."""
LOOKS, PAUSE_S = 10, 0.02
LOADAVG = Path("/proc/loadavg")
TOPOLOGY = Path("/sys/devices/system/cpu")
OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """What decides how many threads are worth having.

    Attributes:
        cores: Cores that this process may run on, a core with two hardware threads once.
        quota: Processors' worth of time that a control group grants; infinity where none does.
        processors: Hardware threads of the whole machine.
        load: Processes of others that run or want to, on the whole machine.
    """

    cores: int
    quota: float
    processors: int
    load: float

    @property
    def free(self) -> float:
        """Processors that nobody else uses; may be below 0."""
        return self.processors - self.load

    @property
    def threads(self) -> int:
        """At most a thread a core, and no more than are granted and free, rounded up.

        >>> Machine(cores=4, quota=math.inf, processors=4, load=1.5).threads
        3
        """
        return max(1, math.ceil(min(self.cores, self.quota, self.free)))


def settle(environment: MutableMapping[str, str], begun: int | None = None) -> str | None:
    """Say in an environment how torch's threads wait, and how many there are.

    Args:
        environment: Of this process before torch is imported, or of one to be started.
        begun: How many threads a run that goes on began with; None for a new one.

    Returns:
        A sentence where fewer threads than cores are taken for a new run, else None.
    """
    here = machine()
    waiting(environment, idle=here.threads >= here.cores)
    if users(environment):
        return None
    if begun is not None:
        environment[COUNT] = environment[OURS] = str(begun)
        return None
    if here.threads >= here.cores:
        environment.pop(OURS, None)
        environment.pop(COUNT, None)
        return None
    environment[COUNT] = environment[OURS] = str(here.threads)
    return _sentence(here)


def waiting(environment: MutableMapping[str, str], *, idle: bool) -> None:
    """Let threads sleep while they wait, unless a user says how they wait.

    Args:
        environment: What OpenMP will read.
        idle: Whether cores are free, so that a brief look before sleeping takes nobody's time.
    """
    said = {name: environment[name] for name in WAITS if name in environment}
    if said in ({}, SLEEPING, BRIEF):
        for name in said:
            del environment[name]
        environment.update(BRIEF if idle else SLEEPING)


def users(environment: Mapping[str, str]) -> bool:
    """Return whether a user says how many threads there are."""
    return COUNT in environment and environment[COUNT] != environment.get(OURS)


def begun_with(choices: Path) -> int | None:
    """Return how many threads the run of a `choices.json` began with; None where it is not said."""
    try:
        return int(json.loads(choices.read_text(encoding="utf-8"))[RUN]["threads"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def machine() -> Machine:
    """Return what this process may use, and what others leave of it."""
    return Machine(
        cores=_cores(),
        quota=quota(),
        processors=os.cpu_count() or 1,
        load=_load(),
    )


def quota() -> float:
    """Return the processors' worth of time that control groups grant; infinity without a limit.

    Version 2 says it in `cpu.max`, quota and period in microseconds, and version 1 in two files;
    the tightest of this process's group and those above it counts (Linux, cgroup-v2.rst).
    """
    limits = [math.inf]
    for group in _groups():
        limits += [_limit(group / "cpu.max"), _limit_of_old(group)]
    return min(limits)


def _groups() -> list[Path]:
    """Return the folders of this process's control groups, and of those above them."""
    found = [GROUPS, GROUPS / "cpu"]
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        _, kinds, inside = line.split(":", 2)
        if not kinds or "cpu" in kinds.split(","):
            root = GROUPS / "cpu" if kinds else GROUPS
            place = PurePosixPath(inside.lstrip("/"))
            found += [root / place, *(root / above for above in place.parents)]
    return found


def _limit(file: Path) -> float:
    try:
        most, period = file.read_text(encoding="utf-8").split()
        return int(most) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # absent, or "max": no limit
        return math.inf


def _limit_of_old(group: Path) -> float:
    try:
        most = int((group / "cpu.cfs_quota_us").read_text(encoding="utf-8"))
        period = int((group / "cpu.cfs_period_us").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return math.inf
    return most / period if most > 0 and period > 0 else math.inf


def _cores() -> int:
    """Return the cores that this process may run on."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores: set[str] = set()
    for processor in os.sched_getaffinity(0):
        file = TOPOLOGY / f"cpu{processor}" / "topology" / "thread_siblings_list"
        try:
            cores.add(file.read_text(encoding="utf-8").strip())
        except OSError:
            cores.add(str(processor))
    return max(1, len(cores))


def _load() -> float:
    """Return how many processes of others run, on average over a minute or now if that is less.

    The minute still counts what has ended, such as an installation, and a moment counts what ends
    at once.
    """
    try:
        minute = os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0
    return min(minute, now) if (now := _now()) is not None else minute


def _now() -> float | None:
    """Return how many processes run beside this one, over a fifth of a second."""
    found: list[int] = []
    for _ in range(LOOKS):
        try:
            running = LOADAVG.read_text(encoding="utf-8").split()[3].partition("/")[0]
            found.append(max(0, int(running) - 1))
        except (OSError, IndexError, ValueError):
            return None
        time.sleep(PAUSE_S)
    return fmean(found)


def _sentence(here: Machine) -> str:
    granted = here.quota < here.free
    why = (
        f"its control group is granted {here.quota:.2g}"
        if granted
        else f"others keep {here.load:.1f} of {here.processors} processors busy"
    )
    word = "thread" if here.threads == 1 else "threads"
    return (
        f"computing on {here.threads} {word}, though this process may use {here.cores} cores: "
        f"{why}; {COUNT} sets another number"
    )
