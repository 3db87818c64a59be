"""Nodes: the processes of a server or a site on this machine, started and stopped.

A node is one process that FLARE's `sub_start.sh --once` becomes, and one more for each job that
runs there. `node.pid` and `node.log` lie in the kit; a process counts as the node's when the kit's
folder is an argument of its command line: the system may give a number away again.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from triskel.core.files import OTHERS
from triskel.core.threads import settle as settle_threads
from triskel.errors import FederationError
from triskel.federation.filters import refuse
from triskel.federation.harden import settle, weakness
from triskel.federation.kits import Kit
from triskel.federation.provision import need_flare

if TYPE_CHECKING:
    import psutil

BLOB_MB = 1024
"""Largest message that a node takes, in MB of 2^20 bytes; FLARE's own value is 4096."""
REGISTERED = "Successfully registered client"
NODE, ONCE = ("client_train", "server_train"), "--once"
"""What a node's command line names: FLARE's module, or the script that becomes it."""
PAUSE_S = 0.2
GONE = 3
"""Looks in a row that find no process: one that becomes another has no name for a moment."""
PARENT_S = 6.0
"""Seconds a node has to end when asked; it takes 2."""
WORKERS_S = 20.0
"""Seconds the processes of its jobs then have; they take up to 15."""


def start(kit: Kit) -> int | None:
    """Start a node in the background; return its process number, None where it runs already.

    Raises:
        FederationError: The node is not hardened, or FLARE is not installed.
    """
    need_flare()
    if alive(kit) is not None:
        return None
    settle(kit)
    lost = weakness(kit)
    if lost is not None:
        raise FederationError(f"{kit.name} is not started: {lost}; `triskel federation harden`")
    refuse(kit)
    _own(kit)
    script = kit.path / "startup" / "sub_start.sh"
    with (kit.path / "node.log").open("wb") as log:
        begun = _spawn(["bash", str(script), "--once"], kit, log)
    (kit.path / "node.pid").write_text(f"{begun.pid}\n", encoding="utf-8")
    return begun.pid


def _own(kit: Kit) -> None:
    """Close a kit to others on the machine: it holds a key, and what runs leave."""
    try:
        kit.path.chmod(0o700)
    except OSError as error:
        raise FederationError(
            f"{kit.path} cannot be closed to others ({error.strerror}); start {kit.name} as its "
            "owner"
        ) from error


def _spawn(command: Sequence[str], kit: Kit, log: IO[bytes]) -> "subprocess.Popen[bytes]":
    here = str(Path(sys.executable).parent)
    environment = os.environ | {
        "PATH": os.pathsep.join((here, os.environ.get("PATH", os.defpath))),
        "PYTHONSAFEPATH": "1",  # nothing is imported from the kit
        "TRISKEL_KIT": str(kit.path),
        "NVFLARE_STREAMING_MAX_BLOB_SIZE": str(BLOB_MB * 2**20),
    }
    if said := settle_threads(environment):
        log.write(f"{said}\n".encode())
        log.flush()
    return subprocess.Popen(
        command,
        cwd=kit.path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        umask=OTHERS,  # nobody else on the machine reads what a node writes
    )


def waiting_for(kits: Sequence[Kit], since: float, patience_s: float) -> list[str]:
    """Wait until nodes are there; return what is said of those that are not.

    Args:
        kits: Which nodes were started.
        since: The time before they were.
        patience_s: How long to wait.
    """
    end = time.monotonic() + patience_s
    missing, looks = list(kits), 0
    while missing and time.monotonic() < end:
        missing = [kit for kit in missing if not ready(kit, since)]
        looks = 0 if any(alive(kit) is not None for kit in missing) else looks + 1
        if looks == GONE:
            break
        time.sleep(PAUSE_S)
    return [_absent(kit) for kit in missing]


def _absent(kit: Kit) -> str:
    if alive(kit) is None:
        return f"{kit.name} ended at once; {kit.path / 'node.log'} says why"
    if kit.kind == "server":
        return f"{kit.name} does not listen on port {kit.port} yet"
    return f"{kit.name} has not reached the server at {kit.host}:{kit.port}; it keeps trying"


def ready(kit: Kit, since: float = 0.0) -> bool:
    """Return whether a server listens, or a site has registered since a time."""
    if kit.kind == "server":
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", kit.port), 1):
            return alive(kit) is not None
        return False
    log = kit.path / "log.txt"
    if not log.is_file() or log.stat().st_mtime < since:
        return False
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return any(REGISTERED in line and _time(line) >= since for line in lines)


def _time(line: str) -> float:
    """Return when a line of a log was written, to the second; 0 where it does not say."""
    with contextlib.suppress(ValueError):
        return time.mktime(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S")) + 1
    return 0.0


def alive(kit: Kit) -> int | None:
    """Return the number of a node's process, whoever started it; None where it does not run."""
    import psutil

    with contextlib.suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int((kit.path / "node.pid").read_text(encoding="utf-8")))
        if _is_node(kit, process):
            return process.pid
    for number in processes(kit):
        with contextlib.suppress(psutil.Error):
            if _is_node(kit, psutil.Process(number)):
                return number
    return None


def _is_node(kit: Kit, process: "psutil.Process") -> bool:
    words = process.cmdline()
    return _of(kit, words) and any(word.endswith(NODE) or word == ONCE for word in words)


def processes(kit: Kit) -> list[int]:
    """Return the numbers of all processes of a node, those of jobs included."""
    import psutil

    found: list[int] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and _of(kit, process.cmdline()):
                found.append(process.pid)
    return found


def _of(kit: Kit, words: Iterable[str]) -> bool:
    inside = f"{kit.path}{os.sep}"
    return any(word == str(kit.path) or word.startswith(inside) for word in words)


def stop(kits: Sequence[Kit]) -> list[str]:
    """End nodes and the processes of their jobs; return the names of those that ran."""
    ran = {kit.name: kit for kit in kits if processes(kit)}
    for kit in ran.values():
        number = alive(kit)
        for each in [number] if number is not None else processes(kit):
            _signal(each, signal.SIGTERM)
    _until_gone(ran.values(), PARENT_S, jobs=False)
    _until_gone(ran.values(), WORKERS_S, jobs=True)
    for kit in ran.values():
        for each in processes(kit):
            _signal(each, signal.SIGKILL)
        (kit.path / "node.pid").unlink(missing_ok=True)
    return list(ran)


def _until_gone(kits: Iterable[Kit], patience_s: float, *, jobs: bool) -> None:
    end, left = time.monotonic() + patience_s, list(kits)
    while left and time.monotonic() < end:
        left = [kit for kit in left if (processes(kit) if jobs else alive(kit))]
        time.sleep(PAUSE_S)


def _signal(number: int, which: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, which)
