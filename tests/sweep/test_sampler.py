"""A search that learns: each setting follows from the record, so a killed one goes on alike."""

# ruff: noqa: ANN401 - records are JSON

import json
import math
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from triskel import cli
from triskel import sweep as sweeps
from triskel.config.read import to_toml
from triskel.config.space import Sampler, Sampling, sampled
from triskel.engines.local import LocalEngine
from triskel.errors import JobError
from triskel.report.catalogue import Entry, entry_of
from triskel.sweep import Sweep, read_sweep
from triskel.sweep.halving import Halving
from triskel.sweep.sampler import Told, suggested

SMALL = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
HOW = Sampling(
    sampler=Sampler.TPE,
    samples=24,
    seed=0,
    space={"train.lr": "log:1e-5..1e-1", "adapter.rank": "2..32", "split.cut": "[4,28],[10,25]"},
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sampler")
    SMALL.save_model(folder / "model")
    rows = SMALL.save_rows(folder / "rows.csv", 40)
    job = SMALL.job(folder / "model", rows, rounds=2, data={"validation_share": 0.3})
    (folder / "job.toml").write_text(to_toml(job), encoding="utf-8")
    return folder


def asked(place: Path, samples: int = 4, **more: Any) -> Sweep:
    given = ["train.lr=log:1e-3..0.5", "adapter.alpha=2.0,4.0"]
    job, _, how = sampled(place / "job.toml", given, samples, Sampler.TPE)
    return Sweep(job=job, settings=(), modes=("params",), sampling=how, **more)


def played(what: Sweep, folder: Path, watch: Any = SMALL.watch) -> Any:
    return sweeps.sweep(what, folder, LocalEngine, watch)


def told_of(count: int, score: Any, how: Sampling = HOW) -> list[Told]:
    """Ask for settings one after the other, each told what those before it reached."""
    told = list[Told]()
    for _ in range(count):
        drawn = suggested(how, told, "accuracy")
        lr, rank, cut = (drawn[key] for key in ("train.lr", "adapter.rank", "split.cut"))
        values = {"train.lr": float(lr), "adapter.rank": int(rank), "split.cut": json.loads(cut)}
        told.append((values, score(values)))
    return told


def off(told: Told) -> float:
    """Return how many tenfolds a rate is off the best one."""
    return abs(math.log10(float(str(told[0]["train.lr"]))) + 3)


def test_what_is_suggested_follows_from_what_was_told_and_comes_near_the_best() -> None:
    def score(values: Mapping[str, Any]) -> float | None:
        return None if values["train.lr"] > 0.03 else -off((values, None))

    told = told_of(24, score)
    assert told == told_of(24, score)
    assert fmean(map(off, told[14:])) < fmean(map(off, told[:10])) / 1.5
    assert suggested(HOW, told, "accuracy") != suggested(HOW, told, "perplexity")
    failed = sum(one[1] is None for one in told[12:])
    assert failed <= 1, "it keeps away from where settings have no figure"


def test_a_killed_search_that_learns_draws_the_same_settings(place: Path, tmp_path: Path) -> None:
    whole = played(asked(place), tmp_path / "whole")
    names = [one["name"] for one in whole["settings"]]
    assert len(set(names)) == 4
    best = max(whole["settings"], key=lambda s: s["rows"]["params"]["everybody"]["accuracy"])
    assert whole["winners"]["params"]["setting"] == best["name"]
    seen: list[str] = []

    def kill(event: Mapping[str, Any]) -> None:
        seen.append(str(event["event"]))
        if seen[-1] == "round_start" and seen.count("round_start") == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        played(asked(place), tmp_path / "out", kill)
    found = entry_of(tmp_path / "out")
    assert isinstance(found, Entry)
    assert found.state == "1 of 4 settings"
    again = played(read_sweep(tmp_path / "out"), tmp_path / "out")
    assert [one["name"] for one in again["settings"]] == names
    assert again["winners"] == whole["winners"]
    events: list[Any] = []
    assert played(asked(place), tmp_path / "out", events.append) == json.loads(json.dumps(again))
    assert events == []
    with pytest.raises(JobError, match="holds another sweep"):
        played(asked(place, samples=5), tmp_path / "out")


def test_a_search_that_learns_may_be_halved(place: Path, tmp_path: Path) -> None:
    record = played(asked(place, halving=Halving(eta=2, rungs=(1, 2))), tmp_path / "out")
    first, last = record["rungs"]["params"]
    assert (len(first["reached"]), len(first["on"]), len(last["reached"])) == (4, 2, 2)
    assert sum(len(one["spent"]["params"]) for one in record["settings"]) == 4 + 2


def test_settings_that_are_all_that_there_are_are_each_drawn_once(
    place: Path, tmp_path: Path
) -> None:
    given = ["adapter.alpha=2.0,4.0,8.0"]
    job, _, how = sampled(place / "job.toml", [*given, "rounds=1"], 3, Sampler.TPE)
    what = Sweep(job=job, settings=(), modes=("params",), sampling=how)
    record = played(what, tmp_path / "out")
    assert sorted(one["set"]["adapter.alpha"] for one in record["settings"]) == [2.0, 4.0, 8.0]


def test_it_learns_from_one_figure_only(place: Path, tmp_path: Path) -> None:
    what = Sweep(**{**vars(asked(place)), "modes": ("params", "logits")})
    with pytest.raises(JobError, match="learns from one figure, and there are params, logits; nam"):
        played(what, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def triskel(*words: str) -> tuple[int, str, str]:
    got = CliRunner().invoke(cli.app, list(words))
    return got.exit_code, got.stdout, got.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--sampler", "tpe"], "--sampler draws settings; say how many: --samples 16"),
        (["--samples", "4", "--sampler", "tpe"], "pip install 'triskel[search]'"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(
    words: list[str], why: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    given = ("--set", "train.lr=log:1e-3..0.5", "--modes", "params")
    code, out, said = triskel("sweep", str(place / "job.toml"), *given, *words)
    assert (code, out) == (2, "")
    assert why in said
    assert list(tmp_path.iterdir()) == []


def test_the_command_draws_at_random_without_another_package(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    given = ("--set", "train.lr=log:1e-3..0.5", "--modes", "params", "--samples", "2")
    code, out, said = triskel("sweep", str(place / "job.toml"), *given, "--out", "out")
    assert code == 0, said
    record = json.loads((tmp_path / "out" / "sweep.json").read_text(encoding="utf-8"))
    assert record["request"]["sampling"]["space"] == {"train.lr": "log:1e-3..0.5"}
    assert all(one["name"] in out for one in record["settings"])
    assert "all together" in out
    assert triskel("sweep", "--resume", "out")[0] == 0
