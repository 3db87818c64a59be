"""A comparison that is killed with signal 9, at any moment, ends where it would have ended anyway.

Run as a script this file is a small server: it imports everything once, and for every line of JSON
on its standard input forks a child that plays or resumes a run folder, until the child is done or
the kill point named in the line is reached.
"""

# ruff: noqa: ANN401 - stand-ins take whatever they are handed

import hashlib
import json
import os
import random
import re
import runpy
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import safe_open

patience = runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "patience.py"))["patience"]
SMALL = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
TIMES = {"seconds", "compute_s", "time", "plain"}
DIED = -signal.SIGKILL


# --- the server -------------------------------------------------------------------------------


class Points:
    """Moments at which a kill may come, counted by name."""

    def __init__(self, wanted: Mapping[str, Any]) -> None:
        self.wanted = re.compile(wanted.get("label", "$^"))
        self.left = int(wanted.get("n", 1))
        self.total = 0

    def __call__(self, label: str) -> None:
        self.total += 1
        if self.wanted.search(label):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def instrument(point: Points) -> Callable[[Mapping[str, Any]], None]:  # noqa: C901 - one list
    """Put kill points before, in the middle of and after whatever touches the disk."""
    from triskel.experiment import checkpoint, stages  # noqa: PLC0415 - in the child only

    def halved(place: Path, label: str) -> None:
        whole = place.read_bytes()
        write_bytes(place, whole[: len(whole) // 2])
        point(f"{label}.half")
        write_bytes(place, whole)
        point(f"{label}.whole")

    save_file, save_adapter = checkpoint.save_file, stages.save_adapter
    write_text, replace, unlink, fsync = Path.write_text, Path.replace, Path.unlink, os.fsync
    write_bytes = Path.write_bytes

    def saving(tensors: Any, place: Any, metadata: Any = None) -> None:
        point("checkpoint.before")
        save_file(tensors, place, metadata=metadata)
        halved(Path(place), "checkpoint")

    def exporting(folder: Path, *rest: Any, **named: Any) -> Any:
        found = save_adapter(folder, *rest, **named)
        for place in sorted(p for p in folder.rglob("*") if p.is_file()):
            halved(place, "adapter")
        return found

    def writing(self: Path, *rest: Any, **more: Any) -> int:
        found = write_text(self, *rest, **more)
        halved(self, f"text {self.name}")
        return found

    def storing(self: Path, data: Any) -> int:
        found = write_bytes(self, data)
        if self.suffix == ".part":
            halved(self, "state")
        return found

    def replacing(self: Path, target: Path) -> Path:
        point(f"replace.before {self.name}")
        found = replace(self, target)
        point(f"replace.after {self.name}")
        return found

    def unlinking(self: Path, *, missing_ok: bool = False) -> None:
        point(f"unlink {self.name}")
        unlink(self, missing_ok=missing_ok)

    def flushing(handle: int) -> None:
        point("fsync")
        fsync(handle)

    checkpoint.save_file, stages.save_adapter = saving, exporting
    Path.write_text, Path.replace, Path.unlink = writing, replacing, unlinking  # type: ignore[method-assign]
    Path.write_bytes = storing  # type: ignore[method-assign]
    os.fsync = flushing  # type: ignore[assignment]

    def watch(event: Mapping[str, Any]) -> None:
        point(" ".join(str(event.get(k, "")) for k in ("event", "stage", "round", "kind")))

    return watch


def child(line: Mapping[str, Any]) -> None:
    import torch  # noqa: PLC0415 - in the child only

    from triskel.config.read import load  # noqa: PLC0415 - in the child only
    from triskel.engines.local import LocalEngine  # noqa: PLC0415 - in the child only
    from triskel.experiment.compare import Request, resume, run  # noqa: PLC0415 - in the child only

    torch.set_num_threads(1)
    point, folder = Points(line), Path(line["folder"])
    watch = instrument(point)
    if line["do"] == "run":
        job = load(Path(line["job"]))
        run(job, Request(baselines=("base", "central")), folder, LocalEngine(job), watch)
    else:
        resume(folder, LocalEngine, watch)
    Path(line["said"]).write_bytes(str(point.total).encode())


def serve() -> None:
    import triskel.engines.local  # noqa: PLC0415 - once, before any fork
    import triskel.experiment.compare  # noqa: PLC0415 - once, before any fork
    import triskel.experiment.summary  # noqa: F401, PLC0415 - once, before any fork

    for text in sys.stdin:
        line = json.loads(text)
        started = os.fork()
        if not started:
            status = 1
            try:
                with Path(line["said"]).open("w") as said:
                    os.dup2(said.fileno(), 2)
                    child(line)
                status = 0
            except BaseException as error:  # noqa: BLE001 - told to the test, word by word
                Path(line["said"]).write_bytes(f"{type(error).__name__}: {error}".encode())
            finally:
                os._exit(status)
        if "after_s" in line:
            time.sleep(line["after_s"])
            os.kill(started, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(started, 0)[1])
        sys.stdout.write(f"{code}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()


# --- the tests --------------------------------------------------------------------------------


class Server:
    """Plays run folders in children that may be killed."""

    def __init__(self, room: Path) -> None:
        environment = {**os.environ, "TRISKEL_CACHE": str(room)}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.said = room / "said"

    def __call__(self, do: str, folder: Path, **more: Any) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        line = {"do": do, "folder": str(folder), "said": str(self.said), **more}
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], patience(100))
        assert ready, "the child hangs"
        return int(self.process.stdout.readline())

    def fine(self, do: str, folder: Path, **more: Any) -> int:
        """Play without a kill; return how many kill points were passed."""
        assert self(do, folder, **more) == 0, self.said.read_text(encoding="utf-8")
        return int(self.said.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    it = Server(tmp_path_factory.mktemp("server"))
    yield it
    assert it.process.stdin is not None
    it.process.stdin.close()
    it.process.wait(patience(20))
    assert it.process.stdout is not None
    it.process.stdout.close()


class Case:
    """A job, and what it comes to when nobody disturbs it."""

    def __init__(self, room: Path, server: Server, task: str) -> None:
        from triskel.config.read import to_toml  # noqa: PLC0415 - after the environment is set

        job = SMALL.job(
            SMALL.save_model(room / "model"),
            SMALL.save_rows(room / "rows.csv", 30),
            task=task,
            rounds=3,
            adapter={"dropout": 0.1, "targets": ("v_proj", "q_proj", "gate_proj", "o_proj")},
            params={"server_momentum": 0.5},
            clients={"cohort": 0.6, "each": {"client-02": {"cut": (0, 2)}}},
            train={"lr": 0.01, "schedule": "cosine", "max_grad_norm": 0.5},
        )
        self.job = room / f"{task}.toml"
        self.job.write_text(to_toml(job), encoding="utf-8")
        self.points = server.fine("run", room / "whole", job=str(self.job))
        self.room = room
        self.whole = fingerprint(room / "whole")


@pytest.fixture(scope="session")
def classify(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Case:
    return Case(tmp_path_factory.mktemp("classify"), server, "classify")


@pytest.fixture(scope="session")
def causal(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Case:
    return Case(tmp_path_factory.mktemp("causal"), server, "causal")


def timeless(value: Any) -> Any:
    """Return JSON values without any time."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k.partition(":")[0] not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def fingerprint(folder: Path) -> dict[str, Any]:
    """Return everything a run folder holds, times excluded."""
    found: dict[str, Any] = {}
    for place in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(place.relative_to(folder))
        if name in {"events.jsonl", "report.html"}:
            continue
        if name.startswith("stages") and place.suffix == ".safetensors":
            with safe_open(place, framework="pt") as file:
                metadata = file.metadata()
                facts = json.loads(metadata.get("facts") or metadata["state"])
                found[name] = {
                    "facts": timeless(facts),
                    **{n: file.get_tensor(n).numpy().tobytes() for n in file.keys()},  # noqa: SIM118 - no mapping
                }
        elif place.suffix == ".json" and not name.startswith("adapters"):
            found[name] = timeless(json.loads(place.read_text(encoding="utf-8")))
        else:
            found[name] = hashlib.sha256(place.read_bytes()).hexdigest()
    return found


def same(folder: Path, case: Case) -> None:
    """Compare file by file, so that a difference is short to read."""
    found = fingerprint(folder)
    for name, value in case.whole.items():
        assert found[name] == value, name
    more = set(found) - set(case.whole)  # a kill between writing and clearing up leaves one
    assert all(re.fullmatch(r"stages/.*-000001.safetensors", name) for name in more), more
    for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines():
        assert isinstance(json.loads(line), dict)


def test_the_job_of_these_tests_uses_all_that_a_checkpoint_must_carry(classify: Case) -> None:
    modes = classify.whole["result.json"]["modes"]
    assert set(modes) == {"params", "logits", "split"}
    params = classify.whole["stages/params/round-000003.safetensors"]
    assert any(n.startswith("server/moments/") for n in params)
    split = classify.whole["stages/split/round-000003.safetensors"]
    assert any(n.startswith("server/moments.square/") for n in split)
    assert any(steps > 3 for steps in split["facts"]["state"]["moments.steps"].values())
    last = classify.whole["stages/logits/round-000003.safetensors"]["facts"]["clients"]
    before = classify.whole["stages/logits/round-000002.safetensors"]["facts"]["clients"]
    assert sorted(last) == ["client-01", "client-02", "client-03"]
    assert len({round_ for round_, _ in last.values()}) > 1, "somebody sat the last round out"
    files = [n for n in classify.whole if n.startswith("stages/logits/clients/")]
    counts = {(c, r) for one in (last, before) for c, (r, _) in one.items()}
    assert len(files) == len(counts), "a file for each state that a kept checkpoint names"
    assert not [n for n in classify.whole if n.startswith("stages/params/clients/")]
    cohorts = [sorted(r["clients"]) for r in modes["params"]["rounds"]]
    assert all(len(c) == 2 for c in cohorts)
    assert len({tuple(c) for c in cohorts}) > 1, "somebody must sit a round out and come back"


EXACT = (
    ("text result.json", 1),  # the first result, half written
    ("checkpoint.before", 2),
    ("checkpoint.half", 1),
    ("replace.before round-", 1),  # whole, and not yet in place
    ("replace.after round-", 1),  # in place, the folder not yet flushed
    ("unlink round-", 1),  # three checkpoints where two are kept
    ("adapter.half", 1),
    ("text done.json", 1),
    ("replace.after done.json", 1),
    ("message params 2 update", 1),
    ("evaluate params", 1),
    ("message logits 2 ask", 2),
    ("round_end logits", 1),
    ("message logits 3 answer", 1),
    ("state.half", 1),
    ("replace.before [0-9a-f]{24}-000003", 2),  # the round's last state, not yet in place
    ("replace.after [0-9a-f]{24}-000003", 2),  # all states of the round, and no checkpoint of it
    ("unlink [0-9a-f]{24}-000003", 1),  # states that no checkpoint names are being cleared
    ("replace.before round-000003", 1),
    ("unlink [0-9a-f]{24}-00000[12]", 1),  # the checkpoint is there, old states are being cleared
    ("message split 1 ask", 5),
    ("message split 2 answer", 4),
    ("step split 3", 1),
    ("stage_end split", 1),
    ("replace.before result.json", 1),
    ("text report.html", 1),
)


@pytest.mark.parametrize("name", ["classify", "causal"])
def test_a_run_killed_at_every_kind_of_moment_ends_with_the_same_bits(
    name: str, server: Server, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    case, folder, do = request.getfixturevalue(name), tmp_path / "run", "run"
    for label, n in EXACT:
        code = server(do, folder, job=str(case.job), label=label, n=n)
        if do == "run" or "report" not in label:
            assert code == DIED, (label, code, server.said.read_text(encoding="utf-8"))
        with (folder / "events.jsonl").open("a", encoding="utf-8") as log:
            log.write('{"event": "round_st')  # a line that the kill cut
        do = "resume"
    server.fine("resume", folder)
    same(folder, case)


@pytest.mark.parametrize(("name", "seed"), [("classify", 0), ("causal", 0)])
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(
    name: str, seed: int, server: Server, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    case, folder, do = request.getfixturevalue(name), tmp_path / "run", "run"
    source = random.Random(f"{name} {seed}")  # noqa: S311 - repeatable
    skip = 14  # until request.json is there, see the test of a run killed before that
    kills = 0
    while True:
        at = skip + source.randrange(case.points // (6 if do == "run" else 3))
        code = server(do, folder, job=str(case.job), label="", n=at)
        if code == 0:
            break
        assert code == DIED, server.said.read_text(encoding="utf-8")
        kills, do, skip = kills + 1, "resume", 1
        assert kills < 60
    assert kills
    same(folder, case)


def test_a_run_repeated_or_killed_by_the_clock_ends_with_the_same_bits(
    server: Server, classify: Case, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    start = time.perf_counter()
    server.fine("run", tmp_path / "timed", job=str(classify.job))
    whole = time.perf_counter() - start
    same(tmp_path / "timed", classify)
    source = random.Random(3)  # noqa: S311 - repeatable
    server("run", folder, job=str(classify.job), after_s=whole / 3)
    for _ in range(3):
        if (folder / "request.json").exists():
            server("resume", folder, after_s=whole * source.uniform(0.1, 0.6))
    server.fine("resume", folder)
    same(folder, classify)


def test_a_finished_run_resumes_to_itself(server: Server, classify: Case, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    server.fine("run", folder, job=str(classify.job))
    passed = server.fine("resume", folder)
    assert passed < classify.points / 3
    same(folder, classify)


def test_a_damaged_last_checkpoint_costs_one_round_and_no_bit(
    server: Server, classify: Case, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    code = server("run", folder, job=str(classify.job), label="text done.json", n=1)
    assert code == DIED
    (stage,) = (folder / "stages").iterdir()
    last = stage / "round-000003.safetensors"
    raw = bytearray(last.read_bytes())
    raw[-3] ^= 0x40
    last.write_bytes(raw)
    server.fine("resume", folder)
    same(folder, classify)


@pytest.mark.parametrize("damage", ["missing", "cut", "bit", "another client's"])
def test_a_damaged_state_of_a_client_costs_one_round_and_no_bit(
    damage: str, server: Server, classify: Case, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    label = "replace.before done.json"
    code = server("run", folder, job=str(classify.job), label=label, n=3)  # central, params, logits
    assert code == DIED
    states = sorted((folder / "stages" / "logits" / "clients").glob("*-000003.safetensors"))
    assert len(states) == 2
    raw = states[0].read_bytes()
    if damage == "missing":
        states[0].unlink()
    else:
        bit = raw[:-1] + bytes([raw[-1] ^ 1])
        other = {"cut": raw[:-4], "bit": bit, "another client's": states[1].read_bytes()}
        states[0].write_bytes(other[damage])
    server.fine("resume", folder)
    same(folder, classify)


def test_a_stage_whose_states_are_all_damaged_is_refused_in_a_sentence(
    server: Server, classify: Case, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    code = server("run", folder, job=str(classify.job), label="replace.before done.json", n=3)
    assert code == DIED
    for place in (folder / "stages" / "logits" / "clients").iterdir():
        place.write_bytes(place.read_bytes()[:-4])
    assert server("resume", folder) == 1
    said = server.said.read_text(encoding="utf-8")
    assert re.fullmatch(
        r"CheckpointError: state of client 'client-0\d' in \S+ is damaged: its SHA-256 does not "
        r"match; resume the run to go on from the round before, or delete \S+ to play the stage "
        r"anew",
        said,
    ), said


def test_a_stage_whose_checkpoints_are_all_damaged_is_refused_by_name(
    server: Server, classify: Case, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert server("run", folder, job=str(classify.job), label="text done.json", n=1) == DIED
    (stage,) = (folder / "stages").iterdir()
    for place in stage.glob("round-*"):
        place.write_bytes(place.read_bytes()[:-5])
    assert server("resume", folder) == 1
    said = server.said.read_text(encoding="utf-8")
    assert said.startswith(
        f"CheckpointError: checkpoint {stage / 'round-000003.safetensors'} is damaged: "
    )


@pytest.mark.parametrize(
    "label", ["text job.toml", "replace.before job.toml", "replace.after job.toml"]
)
def test_a_run_killed_before_it_began_can_be_begun_again(
    label: str, server: Server, classify: Case, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert server("run", folder, job=str(classify.job), label=label, n=1) == DIED
    server.fine("run", folder, job=str(classify.job))
    same(folder, classify)


@pytest.mark.parametrize("files", [(), ("notes.txt",), ("job.toml",), ("request.json",)])
def test_a_folder_that_is_no_run_is_refused_in_a_sentence(
    files: tuple[str, ...], server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("", encoding="utf-8")
    assert server("resume", folder) == 1
    said = server.said.read_text(encoding="utf-8")
    assert said.startswith(f"CheckpointError: {folder} is not a run folder: ")
    assert said.endswith("; it needs job.toml and request.json")
    assert {p.name for p in folder.iterdir()} == set(files), "nothing was written there"


def test_a_folder_in_use_is_not_overwritten(server: Server, classify: Case, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine", encoding="utf-8")
    assert server("run", folder, job=str(classify.job)) == 1
    assert server.said.read_text(encoding="utf-8") == (
        f"JobError: {folder} is not empty; choose another --out"
    )
    assert [p.name for p in folder.iterdir()] == ["thesis.tex"]


def test_a_checkpoint_of_another_job_is_refused(
    server: Server, classify: Case, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert server("run", folder, job=str(classify.job), label="text done.json", n=1) == DIED
    text = (folder / "job.toml").read_text(encoding="utf-8")
    assert "lr = 0.01" in text
    (folder / "job.toml").write_text(text.replace("lr = 0.01", "lr = 0.02"), encoding="utf-8")
    assert server("resume", folder) == 1
    assert server.said.read_text(encoding="utf-8").startswith("CheckpointError: ")
