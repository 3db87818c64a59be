"""A federation on this machine: what dies, what goes on, and what is left.

The engine is a stand-in that trains nothing (`stand_in/engine.py`); everything else is real:
certificates, nodes, jobs, killed processes.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from triskel.federation import kits, nodes, submissions

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")
pytestmark = [pytest.mark.federation, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
waits = runpy.run_path(str(ROOT / "helpers" / "patience.py"))
patience, until, said_by = waits["patience"], waits["until"], waits["said"]
JOB = """
name = "tickets"
rounds = 3
seed = 300
[data]
source = "clients"
train = "tickets"
text = "text"
label = "label"
classes = ["no", "yes"]
[logits]
public = 0
[federation]
quorum = 0.5  # else FLARE ends a job a minute after it missed a client's process
"""


class Operator:
    """Whoever runs commands, in a folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home, self.folder = home, home / "f"
        path = (str(ROOT / "federation" / "stand_in"), str(ROOT.parent / "src"))
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "COLUMNS": "200"}
        self.begun: list[subprocess.Popen[str]] = []

    def begin(self, *words: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", "from triskel.cli import main; main()", "federation"]
        self.begun.append(
            subprocess.Popen(
                [*command, *words],
                cwd=self.home,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return self.begun[-1]

    def run(self, *words: str, expect: int = 0) -> str:
        started = self.begin(*words)
        said = str(said_by(started, 120))
        assert started.returncode == expect, said
        return said

    def start(self, *names: str) -> None:
        """Start nodes; where its own 30 s are too few on a busy machine, wait on."""
        since, said = time.time(), said_by(self.begin("start", "f", *names), 60)
        if "all are there" not in said:
            assert "yet" in said or "it keeps trying" in said, said
            late = nodes.waiting_for(kits.nodes_in(self.folder, names), since, patience(60))
            assert not late, late

    def kit(self, name: str) -> kits.Kit:
        (found,) = kits.nodes_in(self.folder, [name])
        return found

    def workers(self, name: str) -> list[int]:
        """Return the processes of a node's jobs."""
        return [
            one for one in nodes.processes(self.kit(name)) if one != nodes.alive(self.kit(name))
        ]

    def json(self, path: str) -> object:
        return json.loads((self.home / path).read_text(encoding="utf-8"))


def kill(numbers: Sequence[int]) -> None:
    for number in numbers:
        os.kill(number, signal.SIGKILL)


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    found = Operator(tmp_path_factory.mktemp("federation"))
    (found.home / "job.toml").write_text(JOB, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    found.run("new", "f", "--site", "bank", "--site", "hospital", "--port", port)
    try:
        found.start()
        yield found
    finally:
        for begun in found.begun:
            begun.kill()
            begun.communicate()
        found.run("stop", "f")
        assert not [one for kit in kits.nodes_in(found.folder) for one in nodes.processes(kit)]


def closed(operator: Operator, run: str) -> list[int]:
    file = operator.kit("server").own / f"{run}.json"
    return json.loads(file.read_text(encoding="utf-8") or "[]") if file.is_file() else []


def submitted(operator: Operator, before: int) -> submissions.Entry:
    admin = kits.admin_in(operator.folder)
    until(lambda: len(submissions.entries(admin)) > before, "the submission")
    return submissions.entries(admin)[before]


def count(operator: Operator) -> int:
    return len(submissions.entries(kits.admin_in(operator.folder)))


def test_a_job_goes_on_when_a_client_process_dies_and_another_one_is_refused(
    operator: Operator,
) -> None:
    before = count(operator)
    following = operator.begin("submit", "f", "job.toml", "--set", "rounds=20", "--out", "died")
    run = submitted(operator, before).run
    until(lambda: len(closed(operator, run)) >= 1, "the first round")
    kill(operator.workers("hospital"))
    words = ("--supervise", "--set", "name=refused", "--out", "no")
    refused = operator.begin("submit", "f", "job.toml", *words)
    assert "hospital" in operator.run("status", "f")
    said = said_by(following, 60)
    assert following.returncode == 0, said
    assert "down: hospital" in said
    assert operator.json("died/tally.json") == {"closed": [*range(1, 21)], "live": ["bank"]}
    assert operator.run("result", "f", run, "--out", "again").startswith("Results  again")
    assert operator.json("again/ended.json") == {"done": True}
    said = said_by(refused, 30)
    assert refused.returncode == 1
    assert "bank: its policy does not allow the mode params" in said
    assert count(operator) == before + 2, "what the engine refuses is not sent again"
    assert not (operator.home / "no").exists()


def test_a_supervised_job_ends_although_supervisor_and_server_die(operator: Operator) -> None:
    before = count(operator)
    words = ("--supervise", "--set", "rounds=12", "--out", "kept")
    following = operator.begin("submit", "f", "job.toml", *words)
    run = submitted(operator, before).run
    until(lambda: len(closed(operator, run)) >= 1, "the first round")
    kill([following.pid])
    following = operator.begin("resume", "f", run, "--supervise", "--out", "kept")
    kill(nodes.processes(operator.kit("server")))
    operator.start("server")
    said = said_by(following, 90)
    assert following.returncode == 0, said
    assert "submitted again as" in said
    assert operator.json("kept/tally.json") == {
        "closed": [*range(1, 13)],
        "live": ["bank", "hospital"],
    }
    first = operator.json("kept/first.json")
    assert isinstance(first, int)
    assert first > 1, "closed rounds are not run again"
