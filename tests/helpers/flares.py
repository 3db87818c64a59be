"""A federation on NVIDIA FLARE in one folder: three sites, their data, jobs, and what is left.

`Federation` makes kits, writes policies and data into them as `sites.py` does, starts and stops
nodes, and sends jobs. Everything is real: certificates, mutual TLS, processes.
"""

# ruff: noqa: ANN401 - jobs are JSON, and helpers are loaded by path

import contextlib
import json
import os
import runpy
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from triskel.errors import FederationError
from triskel.federation import job_watch, kits, nodes
from triskel.federation.job_folder import Request, read_job, request
from triskel.federation.provision import Plan, new
from triskel.federation.submissions import Entry

HERE = Path(__file__).parents[1]
sites = runpy.run_path(str(HERE / "helpers" / "sites.py"))
waits = runpy.run_path(str(HERE / "helpers" / "patience.py"))
patience, until = waits["patience"], waits["until"]
SITES, ANNA = sites["SITES"], sites["ANNA"]
MARKS = [pytest.mark.federation, pytest.mark.slow]
STARTS_S = 60.0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def model_in(folder: Path) -> Path | None:
    """A small trained model where there is one; without it the tests draw a tiny random one."""
    data = os.environ.get("TRISKEL_DATA")
    beside = Path(data).parent if data else HERE.parent.parent / "shared"
    found = beside / "models" / folder
    return found if found.is_dir() else None


class Federation:
    """Kits, nodes and jobs in a folder.

    Args:
        folder: A new one.
        plan: What the kits are made of.
        model: A model's folder; without one a tiny random model is made.
        options: Keys of the job, as `sites.house` takes them.
    """

    def __init__(self, folder: Path, plan: Plan, model: Path | None = None, **options: str) -> None:
        self.folder, self.plan = folder, plan
        new(folder, plan)
        self.house = sites["house"](root=folder / "kits", model=model, **options)
        self.admin = kits.admin_in(folder)
        self.begun: list[subprocess.Popen[bytes]] = []

    def kit(self, name: str) -> kits.Kit:
        (found,) = kits.nodes_in(self.folder, [name])
        return found

    # --- nodes --------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        """Start nodes, all by default, and wait until they are there."""
        since, chosen = time.time(), kits.nodes_in(self.folder, names)
        for kit in chosen:
            self.begin(kit)
        missing = nodes.waiting_for(chosen, since, patience(STARTS_S))
        assert not missing, missing

    def begin(self, kit: kits.Kit, *prefix: str) -> None:
        """Start a node; its command may be put into another one, such as `ip netns exec`."""
        spawn = nodes._spawn

        def spawned(command: Sequence[str], *rest: Any) -> "subprocess.Popen[bytes]":
            self.begun.append(spawn([*prefix, *command], *rest))
            return self.begun[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nodes, "_spawn", spawned)
            nodes.start(kit)

    def stop(self, *names: str) -> None:
        chosen = kits.nodes_in(self.folder, names)
        nodes.stop(chosen)
        for one in [one for one in self.begun if one.poll() is not None]:
            self.begun.remove(one)
        assert not [one for kit in chosen for one in nodes.processes(kit)]

    # --- jobs ---------------------------------------------------------------------------------

    def asked(self, *modes: Any, text: str = "", on: Sequence[str] = ()) -> Request:
        place = self.folder / "job.toml"
        place.write_text(text or self.house.text, encoding="utf-8")
        return request(read_job(place), modes, on)

    @contextlib.contextmanager
    def line(self) -> Iterator[job_watch.Line]:
        with job_watch.Line(self.admin, patient=False, say=print) as line:
            yield line

    def finished(
        self,
        line: job_watch.Line,
        asked: Request,
        entry: Entry,
        out: Path,
        seen: Callable[[dict[str, Any] | None], None] = lambda _: None,
    ) -> str:
        """Follow a job to its end; return the sentence it ended with, empty where it is done."""
        try:
            job_watch.follow(line, asked, entry, out, (print, seen))
        except FederationError as error:
            return str(error)
        return ""

    def run(self, *modes: Any, out: Path | None = None, text: str = "", **how: Any) -> str:
        """Submit a job, follow it and fetch its result."""
        asked = self.asked(*modes, text=text, on=how.get("on", ()))
        with self.line() as line:
            entry = job_watch.submit(line, asked)
            place, seen = out or self.house.root / "out", how.get("seen", lambda _: None)
            return self.finished(line, asked, entry, place, seen)

    def log(self, name: str) -> str:
        """All that a node's logs say, those of its jobs included."""
        kit = self.kit(name)
        files = [kit.path / "node.log", *sorted(kit.path.rglob("log.txt"))]
        return "\n".join(f.read_text(errors="replace") for f in files if f.is_file())


@contextlib.contextmanager
def federation(
    folder: Path,
    *,
    model: Path | None = None,
    started: bool = True,
    packages: Sequence[Path] = (),
    **options: str,
) -> Iterator[Federation]:
    """A server and three sites on loopback, stopped and waited for at the end."""
    plan = Plan(SITES, port=free_port(), admin=ANNA)
    with pytest.MonkeyPatch.context() as patch:
        places = [HERE.parent / "src", *packages]
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))
        found = Federation(folder, plan, model, **options)
        try:
            if started:
                found.start()
            yield found
        finally:
            found.stop()


def rounds_of(place: Path, mode: str) -> list[dict[str, Any]]:
    found = json.loads((place / "result.json").read_text(encoding="utf-8"))
    rounds: list[dict[str, Any]] = found["modes"][mode]["rounds"]
    return rounds
