"""How many threads compute, how they wait, and that a run goes on with as many as it began."""

import json
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from triskel.core import threads
from triskel.core.threads import COUNT, OURS, Machine, begun_with, settle, users


def two_of_four() -> Machine:
    return Machine(cores=4, quota=math.inf, processors=4, load=2.3)


def idle() -> Machine:
    return Machine(cores=4, quota=math.inf, processors=4, load=0.0)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "machine", two_of_four)


# --- How many ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "quota", "processors", "load", "wanted"),
    [
        (2, math.inf, 2, 0.0, 2),
        (2, math.inf, 2, 0.9, 2),
        (2, math.inf, 2, 1.0, 1),
        (2, math.inf, 2, 12.0, 1),
        (8, 1.5, 8, 0.0, 2),
        (8, 0.1, 8, 0.0, 1),
        (2, math.inf, 64, 30.0, 2),
        (2, math.inf, 64, 63.2, 1),
        (8, math.inf, 16, 4.0, 8),
    ],
)
def test_no_more_threads_than_cores_that_are_ours_granted_and_free(
    cores: int, quota: float, processors: int, load: float, wanted: int
) -> None:
    here = Machine(cores=cores, quota=quota, processors=processors, load=load)
    assert here.threads == wanted


def test_more_load_or_less_quota_never_means_more_threads_and_never_none() -> None:
    loads, quotas = [x / 4 for x in range(60)], [0.05, 0.5, 1.0, 2.5, 8.0, math.inf]
    for cores, quota in product(range(1, 9), quotas):
        found = [Machine(cores=cores, quota=quota, processors=8, load=x).threads for x in loads]
        assert found == sorted(found, reverse=True)
        assert found[-1] == 1
        assert found[0] == math.ceil(min(cores, quota))


def test_load_is_a_minutes_or_the_moments_whichever_is_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "PAUSE_S", 0.0)
    monkeypatch.setattr(threads, "LOADAVG", tmp_path / "loadavg")
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 9.0, 9.0))
    assert threads._load() == 3.0
    (tmp_path / "loadavg").write_text("3.00 9.00 9.00 2/130 4711\n")
    assert threads._load() == 1.0, "this process is one of the two"
    (tmp_path / "loadavg").write_text("3.00 9.00 9.00 8/130 4711\n")
    assert threads._load() == 3.0


def test_the_tightest_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "GROUPS", tmp_path)
    monkeypatch.setattr(threads, "OWN_GROUPS", tmp_path / "own")
    assert threads.quota() == math.inf
    (tmp_path / "own").write_text("0::/pod/app\n")
    (tmp_path / "pod/app").mkdir(parents=True)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "pod/app/cpu.max").write_text("400000 100000\n")
    assert threads.quota() == 4.0
    (tmp_path / "pod/cpu.max").write_text("150000 100000\n")
    assert threads.quota() == 1.5


def test_a_control_group_of_version_1_counts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "GROUPS", tmp_path)
    monkeypatch.setattr(threads, "OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("9:memory:/else\n1:cpu,cpuacct:/app\n")
    group = tmp_path / "cpu/app"
    group.mkdir(parents=True)
    (group / "cpu.cfs_period_us").write_text("100000\n")
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    assert threads.quota() == math.inf
    (group / "cpu.cfs_quota_us").write_text("50000\n")
    assert threads.quota() == 0.5


def test_hardware_threads_of_one_core_count_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "TOPOLOGY", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 9})
    for processor, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{processor}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert threads._cores() == 3, "two pairs, and one of which nothing is known"


# --- What an environment says -----------------------------------------------------------------


@pytest.mark.usefixtures("busy")
def test_where_cores_are_taken_fewer_threads_compute_and_it_is_said() -> None:
    environment: dict[str, str] = {}
    said = settle(environment)
    assert environment == {"OMP_WAIT_POLICY": "passive", COUNT: "2", OURS: "2"}
    assert said == (
        "computing on 2 threads, though this process may use 4 cores: others keep 2.3 of 4 "
        "processors busy; OMP_NUM_THREADS sets another number"
    )


def test_a_quota_is_named_where_it_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    granted = Machine(cores=4, quota=0.5, processors=4, load=0.0)
    monkeypatch.setattr(threads, "machine", lambda: granted)
    said = settle({})
    assert said is not None
    assert "computing on 1 thread, " in said
    assert "its control group is granted 0.5" in said


def test_on_idle_cores_the_number_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "machine", idle)
    environment: dict[str, str] = {}
    assert settle(environment) is None
    assert environment == {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "20000"}


def test_how_threads_wait_is_chosen_anew_when_cores_are_taken_or_free_again() -> None:
    environment = {"PATH": "here"}
    threads.waiting(environment, idle=True)
    assert environment == {"PATH": "here", **threads.BRIEF}
    threads.waiting(environment, idle=False)
    assert environment == {"PATH": "here", **threads.SLEEPING}
    threads.waiting(environment, idle=True)
    assert environment == {"PATH": "here", **threads.BRIEF}


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("begun", [None, 3])
def test_a_users_number_is_never_changed(begun: int | None) -> None:
    environment = {COUNT: "4"}
    assert settle(environment, begun) is None
    assert environment[COUNT] == "4"
    assert OURS not in environment


@pytest.mark.parametrize(
    "own", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "5"}, {"KMP_BLOCKTIME": "1"}]
)
@pytest.mark.parametrize("idle", [True, False])
def test_a_users_way_to_wait_is_never_changed(own: dict[str, str], *, idle: bool) -> None:
    environment = dict(own)
    threads.waiting(environment, idle=idle)
    assert environment == own


def test_what_was_chosen_once_is_chosen_anew_by_who_inherits_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = {COUNT: "1", OURS: "1"}
    assert not users(environment)
    monkeypatch.setattr(threads, "machine", idle)
    assert settle(environment) is None
    assert COUNT not in environment
    assert users({COUNT: "1"})
    assert users({COUNT: "1", OURS: "2"})


@pytest.mark.usefixtures("busy")
def test_a_run_that_goes_on_takes_up_the_number_it_began_with(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    assert settle(environment, begun=3) is None
    assert environment[COUNT] == "3"
    file = tmp_path / "choices.json"
    assert begun_with(file) is None
    for text in ("", "[]", '{"process": 3}', '{"other": {"threads": 3}}'):
        file.write_text(text)
        assert begun_with(file) is None
    file.write_text(json.dumps({"process": {"threads": 3}}))
    assert begun_with(file) == 3


# --- What torch makes of it -------------------------------------------------------------------


@pytest.mark.parametrize(("cores", "looks"), [("idle", "20000"), ("taken", "0")])
def test_torch_takes_the_number_and_how_its_threads_wait(cores: str, looks: str) -> None:
    """OpenMP says what it read, in its own words."""
    script = (
        "import os, sys\n"
        "from triskel.core.threads import settle, waiting\n"
        "assert settle(os.environ, begun=1) is None\n"
        "waiting(os.environ, idle=sys.argv[1] == 'idle')\n"
        "import torch\n"
        "print('threads', torch.get_num_threads())\n"
    )
    own = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", script, cores],
        env={**own, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "threads 1"
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
    assert f"GOMP_SPINCOUNT = '{looks}'" in done.stderr
