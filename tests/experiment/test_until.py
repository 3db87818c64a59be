"""A run that stops after round k for now is the beginning of the whole one, whatever the schedule.

What it goes on to is what a run that was never stopped comes to, to the last bit.
"""

# ruff: noqa: ANN401 - results are JSON

import json
import runpy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open

from triskel.config.job import Job
from triskel.engines.local import LocalEngine
from triskel.errors import CheckpointError
from triskel.experiment.compare import Request, read_run, resume, run

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
TIMES = {"seconds", "compute_s", "time", "plain"}
WHOLE = Request(modes=("params", "logits", "split"), baselines=("local", "central"))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("until")
    small.save_model(folder / "model")
    small.save_rows(folder / "rows.csv", 33)
    return folder


def job(room: Path, schedule: str, **more: Any) -> Job:
    """Whatever is carried from round to round is there: momentum, Adam's moments, own models."""
    given: dict[str, Any] = {
        "rounds": 3,
        "adapter": {"dropout": 0.1},
        "params": {"server_momentum": 0.5},
        "clients": {"cohort": 0.6},
        "train": {"lr": 0.01, "schedule": schedule},
    }
    found: Job = small.job(room / "model", room / "rows.csv", **{**given, **more})
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k.partition(":")[0] not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def left(folder: Path) -> dict[str, Any]:
    """Return what a run left: result, request, adapters and checkpoints, times excluded."""
    found: dict[str, Any] = {
        name: timeless(json.loads((folder / name).read_text(encoding="utf-8")))
        for name in ("result.json", "request.json")
    }
    for place in sorted(folder.rglob("*.safetensors")):
        with safe_open(place, framework="pt") as file:
            metadata = file.metadata() or {}
            told = timeless(json.loads(metadata["facts"])) if "facts" in metadata else None
            tensors = {n: file.get_tensor(n).numpy().tobytes() for n in file.keys()}  # noqa: SIM118 - no mapping
        found[str(place.relative_to(folder))] = {"tensors": tensors, "facts": told}
    return found


def asking(folder: Path, **more: Any) -> None:
    """Write other words into what was asked of a run; None takes them out."""
    place = folder / "request.json"
    asked = {**json.loads(place.read_text(encoding="utf-8")), **more}
    place.write_text(json.dumps({k: v for k, v in asked.items() if v is not None}))


def stopping(folder: Path, job_: Job, until: Mapping[str, int]) -> Any:
    return run(job_, replace(WHOLE, until=until), folder, LocalEngine(job_), small.watch)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_run_that_stopped_is_the_beginning_of_the_whole_and_ends_as_it(
    schedule: str, room: Path, tmp_path: Path
) -> None:
    three = job(room, schedule)
    whole = run(three, WHOLE, tmp_path / "whole", LocalEngine(three), small.watch)
    until = dict.fromkeys(("params", "logits", "split", "local", "central"), 1) | {"split": 2}
    short = stopping(tmp_path / "short", three, until)
    for mode in WHOLE.modes:
        begun, rows = short["modes"][mode]["rounds"], whole["modes"][mode]["rounds"]
        assert len(begun) == until[mode]
        assert timeless(begun) == timeless(rows[: until[mode]])
    central = short["baselines"]["central"]
    assert timeless(central["rounds"]) == timeless(whole["baselines"]["central"]["rounds"][:1])
    assert short["request"]["until"] == until
    asking(tmp_path / "short", until={"params": 2, "local": 2})
    resume(tmp_path / "short", LocalEngine, small.watch)
    asking(tmp_path / "short", until=None)
    resume(tmp_path / "short", LocalEngine, small.watch)
    found, wanted = left(tmp_path / "short"), left(tmp_path / "whole")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == value, name


def test_the_best_round_so_far_is_kept_and_may_be_another_in_the_end(
    room: Path, tmp_path: Path
) -> None:
    more = {"train": {"lr": 0.05, "keep": "best"}, "data": {"validation_share": 0.3}}
    three = job(room, "constant", **more)
    asked = Request(modes=("params",), baselines=())
    whole = run(three, asked, tmp_path / "whole", LocalEngine(three), small.watch)
    early = replace(asked, until={"params": 2})
    short = run(three, early, tmp_path / "short", LocalEngine(three), small.watch)
    assert short["modes"]["params"]["kept"] in {1, 2}
    asking(tmp_path / "short", until=None)
    assert timeless(resume(tmp_path / "short", LocalEngine, small.watch)) == timeless(whole)
    assert left(tmp_path / "short") == left(tmp_path / "whole")


def test_the_round_that_it_stops_after_is_tested_and_told(room: Path, tmp_path: Path) -> None:
    four, events = job(room, "constant", rounds=4, evaluate={"every": 0}), []
    asked = Request(modes=("params",), baselines=("central",), until={"params": 2, "central": 1})
    result = run(four, asked, tmp_path / "run", LocalEngine(four), events.append)
    assert [("accuracy" in row) for row in result["modes"]["params"]["rounds"]] == [False, True]
    begun = {e["stage"]: e["rounds"] for e in events if e["event"] == "stage_start"}
    assert begun == {"central": 1, "params": 2}
    (opened,) = [e for e in events if e["event"] == "run_start"]
    assert opened["rounds"] == 2
    assert opened["work"]["params"] == 2 * opened["work"]["central"] > 0
    assert read_run(tmp_path / "run") == (four, asked)
    card = (tmp_path / "run" / "adapters" / "params" / "README.md").read_text(encoding="utf-8")
    assert "2 rounds" in card
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "2 of 4 rounds" in page


def test_a_round_beyond_the_last_is_the_last(room: Path, tmp_path: Path) -> None:
    one = job(room, "constant", rounds=1)
    asked = Request(modes=("params",), baselines=(), until={"params": 5})
    result = run(one, asked, tmp_path / "run", LocalEngine(one), small.watch)
    assert len(result["modes"]["params"]["rounds"]) == 1


@pytest.mark.parametrize("until", [{"params": 0}, {"params": "2"}, {"params": True}, 3, ["params"]])
def test_what_is_no_round_makes_a_damaged_run(until: Any, room: Path, tmp_path: Path) -> None:
    stopping(tmp_path / "run", job(room, "constant", rounds=1), {})
    asking(tmp_path / "run", until=until)
    with pytest.raises(CheckpointError, match="is not a run folder: "):
        read_run(tmp_path / "run")
