"""A link that fails for seconds costs nothing; one that fails for long costs its site the round.

Server and sites have network namespaces and addresses of their own, on one bridge; the operator is
on the bridge too. Whoever may not make namespaces sees these tests skipped.
"""

# ruff: noqa: ANN401, T201 - helpers are loaded by path; a cut is worth a line

import contextlib
import json
import os
import runpy
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from triskel.federation import job_watch, kits, nodes
from triskel.federation.provision import Plan

HERE = Path(__file__).parents[1]
flares = runpy.run_path(str(HERE / "helpers" / "flares.py"))
compared = runpy.run_path(str(HERE / "engines" / "flare" / "test_sites.py"))
patience, until, SITES, ANNA = (flares[n] for n in ("patience", "until", "SITES", "ANNA"))
pytestmark = flares["MARKS"]
VICTIM = "shop"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Net:
    """One namespace a node, each on a cable to a bridge."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.tag, self.names = f"tk{os.getpid() % 100_000}", names
        self.subnet = f"10.{64 + os.getpid() % 64}.{os.getpid() // 64 % 256}"
        self.server = f"{self.subnet}.1"

    def up(self) -> None:
        bridge = f"{self.tag}b"
        ip("link", "add", bridge, "type", "bridge")
        ip("address", "add", f"{self.subnet}.254/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for number, name in enumerate(self.names, start=1):
            space, outer, inner = self.space(name), self.cable(name), f"{self.tag}i{number}"
            ip("netns", "add", space)
            ip("link", "add", outer, "type", "veth", "peer", "name", inner)
            ip("link", "set", outer, "master", bridge, "up")
            ip("link", "set", inner, "netns", space)
            ip("-n", space, "address", "add", f"{self.subnet}.{number}/24", "dev", inner)
            ip("-n", space, "link", "set", inner, "up")
            ip("-n", space, "link", "set", "lo", "up")

    def down(self) -> None:
        for name in self.names:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "delete", self.space(name))
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "delete", f"{self.tag}b")

    def space(self, name: str) -> str:
        return f"{self.tag}-{name}"

    def cable(self, name: str) -> str:
        return f"{self.tag}o{self.names.index(name) + 1}"

    def link(self, name: str, state: str) -> None:
        ip("link", "set", self.cable(name), state)
        print(f"{time.strftime('%T')} the link of {name} is {state}")


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    if shutil.which("ip") is None:
        pytest.skip("no `ip` here: install iproute2")
    made = Net(("server", *SITES))
    try:
        made.up()
    except subprocess.CalledProcessError as error:
        made.down()
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    yield made
    made.down()


@pytest.fixture(scope="module")
def there(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("links") / "f"
    plan = Plan(SITES, server=net.server, port=8002, admin=ANNA)
    options = {"train.epochs": "12", "train.batch": "1", "federation.patience_s": "60"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE.parent / "src"))
        found = flares["Federation"](folder, plan, **options)
        chosen, since = kits.nodes_in(folder), time.time()
        try:
            for kit in chosen:
                found.begin(kit, "ip", "netns", "exec", net.space(kit.name))
            until(lambda: listens(net.server), "the server")
            missing = nodes.waiting_for(
                [k for k in chosen if k.kind == "site"], since, patience(60)
            )
            assert not missing, missing
            yield found
        finally:
            found.stop()


def listens(host: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, 8002), 1):
        return True
    return False


class Cutter:
    """Watches a job, and cuts one link in the middle of what the victim does in given plays."""

    def __init__(self, net: Net, cuts: dict[str, float]) -> None:
        self.net, self.cuts, self.play, self.since = net, cuts, "", 0.0
        self.threads: list[threading.Thread] = []

    def __call__(self, progress: Any) -> None:
        """Take a look at the progress."""
        found = progress or {}
        play, client = found.get("play", ""), found.get("clients", {}).get(VICTIM, {})
        if play != self.play:
            print(f"{time.strftime('%T')} {play}")
            self.play, self.since = play, time.monotonic()
        late = time.monotonic() - self.since > 0.9
        if play in self.cuts and late and client.get("state") in {"working", "waiting"}:
            print(f"{time.strftime('%T')} {play}: {client}")
            thread = threading.Thread(target=self.cut, args=(self.cuts.pop(play),))
            self.threads.append(thread)
            thread.start()

    def cut(self, seconds: float) -> None:
        self.net.link(VICTIM, "down")
        time.sleep(seconds)
        self.net.link(VICTIM, "up")

    def ended(self) -> None:
        for thread in self.threads:
            thread.join()
        assert not self.cuts, f"no cut fell into {', '.join(self.cuts)}"


def played(there: Any, cutter: Cutter, asked: Any, out: Path) -> dict[str, Any]:
    with there.line() as line:
        entry = job_watch.submit(line, asked)
        try:
            assert there.finished(line, asked, entry, out, cutter) == ""
        finally:
            cutter.ended()
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def test_a_link_cut_for_10_and_for_40_seconds_loses_nothing_within_patience(
    net: Net, there: Any
) -> None:
    cutter = Cutter(net, {"split/1/work": 10.0, "split/2/work": 40.0})
    ours = played(there, cutter, there.asked("split"), there.house.root / "out")
    compared["same"](there.house, ("split",), ours, lambda counted, sent: counted > sent)


def test_who_is_away_for_longer_than_patience_misses_the_round_and_takes_part_again(
    net: Net, there: Any, tmp_path: Path
) -> None:
    text = there.house.text.replace("rounds = 2", "rounds = 5")
    text = text.replace("patience_s = 60", "patience_s = 15\nquorum = 0.6")
    cutter = Cutter(net, {"split/1/work": 25.0})
    ours = played(there, cutter, there.asked("split", text=text), tmp_path / "out")
    rounds = ours["modes"]["split"]["rounds"]
    missed = [one["absent"][VICTIM] for one in rounds if "absent" in one]
    print(*missed, sep="\n")
    assert rounds[0]["absent"] == {VICTIM: "not heard of for 15 s"}
    assert set(missed[1:]) <= {"still away (not heard of for 15 s)"}, "it is not waited for again"
    assert "absent" not in rounds[-1]
    assert rounds[-1]["clients"][VICTIM]["up"]["messages"]
    others = [one for one in SITES if one != VICTIM]
    assert all(one["clients"][name]["up"]["messages"] for one in rounds for name in others)
