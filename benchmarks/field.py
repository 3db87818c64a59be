"""A federation on this machine to measure: kits, data and policies, started and stopped."""

import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triskel.compare import Request, run
from triskel.engines.local import LocalEngine
from triskel.federation import kits, nodes
from triskel.job import ModeName

ROOT = Path(__file__).parent.parent
SITES = runpy.run_path(str(ROOT / "tests" / "sites.py"))
COMMAND = [sys.executable, "-c", "from triskel.cli import main; main()", "federation"]


class Field:
    """A federation of `bank`, `clinic` and `shop`.

    Args:
        home: An empty folder for all of it.
        keys: Keys of the job beside those of the tests' tiny one.
        more: What else `house` takes: `model`, `rows`, `longest`.
    """

    def __init__(self, home: Path, keys: dict[str, str], **more: Any) -> None:
        self.home, self.folder = home, home / "f"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        names = [word for site in SITES["SITES"] for word in ("--site", site)]
        self.command("new", "f", *names, "--port", port, "--admin", SITES["ANNA"])
        self.house = SITES["house"](self.folder / "kits", **more, **keys)
        self.local = self.house.local
        self.job = self.folder / "kits" / "job.toml"

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

    def submit(self, mode: str, out: str, *more: str) -> Path:
        """Play the job in a mode, and return the folder of its result."""
        self.command("submit", "f", str(self.job), "--mode", mode, "--out", out, *more)
        return self.home / out

    def alone(self, mode: ModeName) -> Path:
        """Play the job in this process, and return the folder of its result."""
        out = self.home / f"alone-{mode}"
        if not out.exists():
            request = Request(modes=(mode,), baselines=())
            run(self.local, request, out, LocalEngine(self.local), lambda _: None)
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
def field(home: Path, keys: dict[str, str], **more: Any) -> Iterator[Field]:
    """Make a federation, start it, and stop it in the end."""
    made = Field(home, keys, **more)
    try:
        made.command("start", "f")
        yield made
    finally:
        made.command("stop", "f")


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
