"""A run that goes on for more rounds ends as one that was asked for so many from the start."""

# ruff: noqa: ANN401 - results are JSON

import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open

from triskel.config.job import Job
from triskel.engines.local import LocalEngine
from triskel.errors import CheckpointError, JobError
from triskel.experiment.compare import Request, read_run, resume, run
from triskel.experiment.seeds import compare_seeds, resume_seeds

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
EVERY = Request(
    modes=("params", "logits", "split"), baselines=("base", "local", "central", "local_equal")
)
TIMES = {"seconds", "compute_s", "time", "plain"}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("more")
    small.save_model(folder / "model")
    small.save_rows(folder / "rows.csv", 33)
    return folder


def job(room: Path, **more: Any) -> Job:
    """Whatever is carried from round to round is there: momentum, Adam's moments, own models."""
    given: dict[str, Any] = {
        "rounds": 2,
        "adapter": {"dropout": 0.1},
        "params": {"server_momentum": 0.5},
        "clients": {"cohort": 0.6},
        "train": {"lr": 0.01},
    }
    found: Job = small.job(room / "model", room / "rows.csv", **{**given, **more})
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k.partition(":")[0] not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def left(folder: Path) -> dict[str, Any]:
    """Return what a run left: its result, adapters, outcomes and checkpoints, times excluded."""
    found: dict[str, Any] = {
        "result.json": timeless(json.loads((folder / "result.json").read_text(encoding="utf-8")))
    }
    for place in sorted(p for p in folder.rglob("*.safetensors")):
        with safe_open(place, framework="pt") as file:
            metadata = file.metadata() or {}
            told = timeless(json.loads(metadata["facts"])) if "facts" in metadata else None
            tensors = {n: file.get_tensor(n).numpy().tobytes() for n in file.keys()}  # noqa: SIM118 - no mapping
        found[str(place.relative_to(folder))] = {"tensors": tensors, "facts": told}
    return found


@pytest.fixture(scope="module")
def long(room: Path) -> dict[str, Any]:
    three = job(room, rounds=3)
    run(three, EVERY, room / "long", LocalEngine(three), small.watch)
    return left(room / "long")


@pytest.fixture(scope="module")
def short(room: Path) -> Path:
    two = job(room)
    run(two, EVERY, room / "short", LocalEngine(two), small.watch)
    return room / "short"


def test_a_finished_run_goes_on_and_ends_to_the_bit_as_a_longer_one(
    long: dict[str, Any], short: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(short, tmp_path / "run")
    resume(folder, LocalEngine, small.watch, rounds=3)
    found = left(folder)
    for name, value in long.items():
        assert found[name] == value, name
    assert found.keys() == long.keys()
    assert read_run(folder)[0].rounds == 3  # and whoever resumes it later goes on with that
    resume(folder, LocalEngine, small.watch)
    assert left(folder) == found


def test_one_that_was_killed_on_its_way_goes_on_without_being_told_again(
    long: dict[str, Any], short: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(short, tmp_path / "run")

    def kill(event: Any) -> None:
        if (event.get("event"), event.get("stage"), event.get("round")) == (
            "round_start", "logits", 3,
        ):  # fmt: skip
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resume(folder, LocalEngine, kill, rounds=3)
    resume(folder, LocalEngine, small.watch)
    assert left(folder) == long


def test_several_seeds_go_on_together(room: Path, tmp_path: Path) -> None:
    request = Request(modes=("params",), baselines=())
    one, two = tmp_path / "short", tmp_path / "long"
    compare_seeds(job(room), request, [0, 3], one, LocalEngine, small.watch)
    compare_seeds(job(room, rounds=3), request, [0, 3], two, LocalEngine, small.watch)

    def kill(event: Any) -> None:
        if event.get("event") == "seed_start" and event["seed"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resume_seeds(one, LocalEngine, kill, rounds=3)
    resume_seeds(one, LocalEngine, small.watch)
    found, wanted = (left(folder) for folder in (one, two))
    assert found == wanted
    assert len(found["result.json"]["runs"]) == 2
    (one / "seed-3" / "stages" / "params" / "round-000003.safetensors").unlink()
    (one / "seed-3" / "stages" / "params" / "round-000002.safetensors").unlink()
    with pytest.raises(JobError, match=r"seed-3.* checkpoints are gone"):
        resume_seeds(one, LocalEngine, small.watch, rounds=4)
    assert read_run(one / "seed-0")[0].rounds == 3  # nothing was begun


@pytest.mark.parametrize(
    ("rounds", "spoilt", "said"),
    [
        (1, "", "has 2 rounds, and rounds = 1 asks for fewer; a round that was played cannot"),
        (3, "checkpoints", "are gone; begin a new run with what this one reached: triskel run JOB"),
    ],
)  # fmt: skip
def test_what_cannot_go_on_is_refused_and_left_as_it_was(
    rounds: int, spoilt: str, said: str, short: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(short, tmp_path / "run")
    if spoilt:
        for place in (folder / "stages" / "params").glob("round-*"):
            place.unlink()
    before = left(folder)
    with pytest.raises(JobError, match=said):
        resume(folder, LocalEngine, small.watch, rounds=rounds)
    assert left(folder) == before
    assert read_run(folder)[0].rounds == 2


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"train": {"schedule": "linear"}}, 'schedule = "linear" falls over all rounds, so a run'),
        (
            {"params": {"local": "finetune"}},
            "finetune averages nothing in the last 1 of all rounds, so a run of 3 trains otherwise",
        ),
    ],
)
def test_rounds_that_depend_on_the_last_one_are_not_gone_on_from(
    sections: dict[str, Any], why: str, room: Path, tmp_path: Path
) -> None:
    falls = job(room, rounds=2, **sections)
    run(falls, Request(modes=("params",), baselines=()), tmp_path, LocalEngine(falls), small.watch)
    with pytest.raises(JobError, match=why):
        resume(tmp_path, LocalEngine, small.watch, rounds=3)


def test_a_client_alone_that_may_compute_less_by_now_trains_anew(
    room: Path, tmp_path: Path
) -> None:
    request = Request(modes=(), baselines=("central",))
    for rounds in (1, 2):
        one, place = job(room, rounds=rounds), tmp_path / str(rounds)
        run(one, request, place, LocalEngine(one), small.watch)
    before = left(tmp_path / "1")
    shutil.rmtree(tmp_path / "1" / "stages")
    shutil.copytree(tmp_path / "2" / "stages", tmp_path / "1" / "stages")
    resume(tmp_path / "1", LocalEngine, small.watch)
    assert left(tmp_path / "1") == before


@pytest.mark.parametrize("rounds", ["1", '"6"', "true", "2.5"])
def test_rounds_that_are_none_make_a_damaged_run(rounds: str, short: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(short, tmp_path / "run")
    asked = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    text = json.dumps({**asked, "rounds": "R"}).replace('"R"', rounds)
    (folder / "request.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"is not a run folder: request.json has rounds = "):
        read_run(folder)
