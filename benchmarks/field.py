"""A federation on this machine to measure: kits, data and policies, started and stopped."""

import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triskel.config.job import ModeName
from triskel.config.read import load
from triskel.engines.local import LocalEngine
from triskel.experiment.compare import Request, run
from triskel.federation import kits, nodes

ROOT = Path(__file__).parent.parent
SITES = runpy.run_path(str(ROOT / "tests" / "helpers" / "sites.py"))
COMMAND = [sys.executable, "-c", "from triskel.cli import main; main()", "federation"]


class Field:
    """A federation whose kits lie in a folder; what is in its policies and jobs is put there after.

    Args:
        home: An empty folder for all of it.
        names: Its sites.

    Attributes:
        kits: Folder of the nodes.
        job: The job file, beside the kits; in one process its names are files there.
    """

    def __init__(self, home: Path, names: Sequence[str]) -> None:
        self.home, self.folder, self.names = home, home / "f", tuple(names)
        self.kits = self.folder / "kits"
        self.job = self.kits / "job.toml"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        words = [word for name in names for word in ("--site", name)]
        self.command("new", "f", *words, "--port", port, "--admin", SITES["ANNA"])

    def begin(self, *words: str) -> "subprocess.Popen[str]":
        """Start a command; what it says can be read from it."""
        environment = os.environ | {"COLUMNS": "200", "PYTHONPATH": str(ROOT / "src")}
        return subprocess.Popen(
            [*COMMAND, *words], cwd=self.home, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def command(self, *words: str) -> str:
        """Run a command, and return what it says."""
        begun = self.begin(*words)
        said, _ = begun.communicate()
        if begun.returncode:
            raise RuntimeError(f"triskel federation {' '.join(words)}: {said}")
        return said

    def submit(self, modes: Sequence[str], out: str, *more: str) -> Path:
        """Play the job in some modes, and return the folder of its result."""
        words = [word for mode in modes for word in ("--mode", mode)]
        self.command("submit", "f", str(self.job), *words, "--out", out, *more)
        return self.home / out

    def alone(self, *modes: ModeName) -> Path:
        """Play the job in this process, and return the folder of its result."""
        out, job = self.home / f"alone-{'-'.join(modes)}", load(self.job)
        if not out.exists():
            run(job, Request(modes=modes, baselines=()), out, LocalEngine(job), lambda _: None)
        return out

    def workers(self, name: str) -> list[int]:
        """Return the processes of a node's jobs."""
        (kit,) = kits.nodes_in(self.folder, [name])
        return [one for one in nodes.processes(kit) if one != nodes.alive(kit)]

    def everything(self, name: str) -> list[int]:
        """Return all processes of a node."""
        (kit,) = kits.nodes_in(self.folder, [name])
        return nodes.processes(kit)


@contextmanager
def started(there: Field) -> Iterator[Field]:
    """Start a federation, and stop it in the end."""
    try:
        there.command("start", "f")
        yield there
    finally:
        there.command("stop", "f")


def tiny(home: Path, keys: Mapping[str, str], **more: Any) -> Field:
    """Make the federation of the tests.

    Args:
        home: An empty folder.
        keys: Keys of its job beside those of the tests'.
        more: What else `house` takes: `model`, `rows`, `longest`.
    """
    there = Field(home, SITES["SITES"])
    house = SITES["house"](there.kits, **more, **keys)
    there.job.write_text(house.text, encoding="utf-8")
    return there


def same(one: Path, two: Path, mode: str) -> bool:
    """Return whether two runs ended with the same adapter, bit by bit."""
    first, second = [
        (place / "adapters" / mode / "adapter_model.safetensors").read_bytes()
        for place in (one, two)
    ]
    return first == second


def rounds(out: Path, mode: str) -> list[dict[str, Any]]:
    """Return the rows of a run's rounds."""
    found = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return list(found["modes"][mode]["rounds"])
