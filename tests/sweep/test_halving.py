"""Successive halving: who goes on, what it costs, and that nothing depends on where it stopped."""

# ruff: noqa: ANN401 - records are JSON

import json
import math
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from typer.testing import CliRunner

from triskel import cli
from triskel import sweep as sweeps
from triskel.config.grid import settings_of
from triskel.config.read import to_toml
from triskel.core.result_file import run_in
from triskel.core.sweep_file import schema_of
from triskel.engines.local import LocalEngine
from triskel.errors import JobError, TrainingError
from triskel.report.catalogue import Entry, entry_of
from triskel.sweep import Sweep, read_record, read_sweep
from triskel.sweep.halving import Halving, best_first, going_on, halving_of, rung_now

SMALL = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
RATES = "train.lr=1e-3,0.01,1e30,0.2,0.05"
HALVES = Halving(eta=2, rungs=(1, 2, 4))
ROUNDS = 4
TIMES = {"seconds", "compute_s", "time", "plain"}
SPENT = ("up_bytes", "down_bytes", "client_flops", "server_flops")
Watch = Callable[[Mapping[str, Any]], None]


def ignore(event: object) -> None:
    """Take note of nothing."""
    del event


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k.partition(":")[0] not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def left(folder: Path) -> dict[str, Any]:
    """Return what a run left: result, request, adapters and checkpoints, times excluded."""
    found = {name: timeless(read(folder / name)) for name in ("result.json", "request.json")}
    for place in sorted(folder.rglob("*.safetensors")):
        with safe_open(place, framework="pt") as file:
            metadata = file.metadata() or {}
            told = timeless(json.loads(metadata["facts"])) if "facts" in metadata else None
            tensors = {n: file.get_tensor(n).numpy().tobytes() for n in file.keys()}  # noqa: SIM118 - no mapping
        found[str(place.relative_to(folder))] = {"tensors": tensors, "facts": told}
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("halving")
    SMALL.save_model(folder / "model")
    job = SMALL.job(
        folder / "model",
        SMALL.save_rows(folder / "rows.csv", 60),
        rounds=ROUNDS,
        data={"validation_share": 0.3},
        train={"schedule": "cosine"},
        params={"server_momentum": 0.5},
        clients={"cohort": 0.6},
        name="loans",
    )
    (folder / "job.toml").write_text(to_toml(job), encoding="utf-8")
    return folder


def asked(place: Path, *given_: str, **more: Any) -> Sweep:
    base, several = settings_of(place / "job.toml", given_)
    return Sweep(job=base, settings=several, **{"modes": ("params",), "halving": HALVES, **more})


def played(what: Sweep, folder: Path, watch: Watch = ignore) -> Any:
    return sweeps.sweep(what, folder, LocalEngine, watch)


@pytest.fixture(scope="module")
def grid(place: Path) -> SimpleNamespace:
    """The full grid: every setting plays all its rounds."""
    what = asked(place, RATES, halving=None, baselines=("local",))
    return SimpleNamespace(record=played(what, place / "grid"), folder=place / "grid")


@pytest.fixture(scope="module")
def halved(place: Path) -> SimpleNamespace:
    what = asked(place, RATES, baselines=("local",))
    record = played(what, place / "halved")
    return SimpleNamespace(record=record, folder=place / "halved", asked=what)


# --- the law ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eta", "first", "settings", "rounds", "rungs"),
    [
        (2, None, 8, 8, (1, 2, 4, 8)),
        (2, None, 8, 100, (13, 26, 52, 100)),
        (3, None, 8, 4, (2, 4)),
        (3, None, 9, 27, (3, 9, 27)),
        (3, 1, 8, 4, (1, 3, 4)),
        (2, 3, 4, 4, (3, 4)),
        (2, None, 1, 4, (2, 4)),
        (9, None, 4, 4, (1, 4)),
    ],
)
def test_rungs_grow_by_eta_and_end_with_the_job(
    eta: int, first: int | None, settings: int, rounds: int, rungs: tuple[int, ...]
) -> None:
    assert halving_of(eta, first, settings=settings, rounds=rounds).rungs == rungs


@pytest.mark.parametrize(
    ("eta", "first", "rounds", "why"),
    [
        (1, None, 4, "--halving 1 lets every setting go on; give 2 or more"),
        (2, None, 1, "the job has rounds = 1; give it more: --set rounds=4"),
        (2, 4, 4, "--first-rounds 4 must be above 0 and below the job's rounds = 4"),
        (2, -1, 4, "--first-rounds -1 must be above 0"),
    ],
)
def test_a_search_without_a_rung_is_refused(
    eta: int, first: int | None, rounds: int, why: str
) -> None:
    with pytest.raises(JobError, match=why.replace("(", r"\(")):
        halving_of(eta, first, settings=4, rounds=rounds)


FIGURES = st.one_of(st.none(), st.just(math.nan), st.floats(0, 1).map(lambda x: round(x, 1)))


@given(values=st.lists(FIGURES, min_size=1, max_size=12), eta=st.integers(2, 5), more=st.booleans())
def test_the_best_share_goes_on_and_of_level_settings_the_first(
    values: list[float | None], eta: int, *, more: bool
) -> None:
    names = [f"s{i}" for i in range(len(values))]
    reached = dict(zip(names, values, strict=True))
    figure = "accuracy" if more else "perplexity"
    on = going_on(reached, eta, figure)
    known = [(v if more else -v, -i) for i, v in enumerate(values) if v is not None and v == v]  # noqa: PLR0124 - not a number
    assert len(on) == min(max(1, len(values) // eta), len(known))
    wanted = sorted(known, reverse=True)[: len(on)]
    assert set(on) == {names[-i] for _, i in wanted}
    assert on == sorted(on, key=names.index)
    assert best_first(reached, figure)[:1] == ([names[-max(known)[1]]] if known else [])


def test_a_setting_that_is_left_alone_plays_the_rest_in_one_go() -> None:
    rung: Any = {"rounds": 1, "reached": {"a": 0.1, "b": 0.2}, "on": ["b"]}
    last: Any = {"rounds": 4, "reached": {"b": 0.3}, "on": []}
    assert rung_now(HALVES, [], 2) == (1, None)
    assert rung_now(HALVES, [], 1) == (4, None)
    assert rung_now(HALVES, [rung], 2) == (4, ["b"])
    assert rung_now(HALVES, [rung, last], 2) == (4, ["b"]), "what failed there is tried again"
    two: Any = {**rung, "on": ["a", "b"]}
    assert rung_now(HALVES, [two], 2) == (2, ["a", "b"])


# --- against the full grid --------------------------------------------------------------------


def ranking(grid: SimpleNamespace, row: str) -> list[dict[str, Any]]:
    """Halve by hand, from the rounds of the full grid: means over clients, by examples."""
    names = [one["name"] for one in grid.record["settings"]]
    rungs, rounds = list[dict[str, Any]](), [1, 2, 4]
    while rounds:
        now = rounds.pop(0) if len(names) > 1 else rounds.pop()
        reached: dict[str, float | None] = {}
        for name in names:
            stages = grid.folder / name / "stages"
            files = stages.glob("local-*/done.json" if row == "local" else "params/done.json")
            each = [read(file)["rounds"][now - 1]["per_client"].values() for file in files]
            clients = [one for told in each for one in told]
            count = sum(one["examples"] for one in clients)
            total = sum(one["accuracy"] * one["examples"] for one in clients)
            reached[name] = total / count if clients else None
        known = [n for n in names if reached[n] is not None]
        best = sorted(known, key=lambda n: (-float(reached[n] or 0), names.index(n)))
        on = best[: max(1, len(names) // 2)]
        names = [n for n in names if n in on]
        rungs.append({"rounds": now, "reached": reached, "on": names})
        if now == ROUNDS:
            rungs[-1]["on"] = []
            break
    return rungs


@pytest.mark.parametrize("row", ["params", "local"])
def test_who_goes_on_is_what_the_full_grid_says_of_these_rounds(
    row: str, grid: SimpleNamespace, halved: SimpleNamespace
) -> None:
    wanted, found = ranking(grid, row), halved.record["rungs"][row]
    assert [one["rounds"] for one in found] == [one["rounds"] for one in wanted]
    assert [len(one["reached"]) for one in found] == [5, 2, 1]
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine["on"] == theirs["on"]
        assert list(mine["reached"]) == list(theirs["reached"])
        for name, value in mine["reached"].items():
            assert value == (None if theirs["reached"][name] is None else pytest.approx(value))
    assert halved.record["winners"][row]["setting"] == next(iter(wanted[-1]["reached"]))


def test_a_setting_that_went_on_ends_as_one_that_never_stopped(
    grid: SimpleNamespace, halved: SimpleNamespace
) -> None:
    rows = halved.record["winners"]
    for row in ("params", "local"):
        name = rows[row]["setting"]
        one, other = (read(f / name / "result.json") for f in (halved.folder, grid.folder))
        part = "modes" if row == "params" else "baselines"
        assert timeless(one[part][row]) == timeless(other[part][row])
        mine, theirs = left(halved.folder / name), left(grid.folder / name)
        same = [n for n in theirs if n.startswith((f"stages/{row}", f"adapters/{row}"))]
        assert len(same) > 1
        for file in same:
            assert mine[file] == theirs[file], file


def test_settings_that_stopped_hold_the_first_rounds_of_the_whole(
    grid: SimpleNamespace, halved: SimpleNamespace
) -> None:
    for one in halved.record["settings"]:
        if "params" not in one["rows"]:
            continue
        folders = (folder / one["name"] for folder in (halved.folder, grid.folder))
        mine, theirs = (read(folder / "result.json")["modes"]["params"] for folder in folders)
        count = len(mine["rounds"])
        assert count == one["rows"]["params"]["rounds"]
        assert timeless(mine["rounds"]) == timeless(theirs["rounds"][:count])


def test_costs_are_those_of_the_rounds_that_were_played(
    grid: SimpleNamespace, halved: SimpleNamespace
) -> None:
    def spent(name: str, first: int, last: int) -> list[int]:
        found: Any = run_in(grid.folder / name)
        rows = found["modes"]["params"]["rounds"] if found else []  # one diverged at once
        played_ = [row for row in rows if first < row["round"] <= last]
        clients = [one for row in played_ for one in row["clients"].values()]
        up, down = (sum(one[way]["message_bytes"] for one in clients) for way in ("up", "down"))
        server = sum(row["server"]["flops"] for row in played_)
        return [up, down, sum(one["flops"] for one in clients), server]

    cost, before, total = halved.record["cost"], 0, [0, 0, 0, 0]
    for rung, told in zip(
        halved.record["rungs"]["params"], cost["rows"]["params"]["rungs"], strict=True
    ):
        parts = [spent(name, before, rung["rounds"]) for name in rung["reached"]]
        wanted = [sum(part) for part in zip(*parts, strict=True)]
        assert [told[key] for key in SPENT] == wanted
        assert (told["rounds"], told["settings"]) == (rung["rounds"], len(rung["reached"]))
        before, total = rung["rounds"], [a + b for a, b in zip(total, wanted, strict=True)]
    assert [cost["rows"]["params"]["total"][key] for key in SPENT] == total
    whole = grid.record["cost"]
    assert "grid" not in whole
    assert "rungs" not in whole["rows"]["params"]
    for key in SPENT:
        both = [cost["rows"][row]["total"][key] for row in ("params", "local")]
        assert cost["total"][key] == sum(both)
    local = cost["rows"]["local"]["total"]
    assert local["up_bytes"] == local["down_bytes"] == 0 < local["client_flops"]
    for key in ("up_bytes", "down_bytes", "client_flops"):  # a rate changes none of them
        measured, counted = whole["rows"]["params"]["total"][key], cost["rows"]["params"]["grid"]
        assert counted[key] == pytest.approx(measured, rel=1e-3)  # a header tells a rate
        assert 0 < total[SPENT.index(key)] < measured
    assert cost["rows"]["params"]["rungs"][0]["seconds"] > 0


def test_only_the_winner_is_tested_and_the_record_fits_its_schema(
    halved: SimpleNamespace, grid: SimpleNamespace
) -> None:
    for one in (halved, grid):
        jsonschema.validate(read(one.folder / "sweep.json"), schema_of())
    told = CliRunner().invoke(cli.app, ["schema", "sweep"])
    assert json.loads(told.stdout)["title"] == "sweep.json of triskel"
    record: Any = read_record(halved.folder)
    assert json.loads(json.dumps(halved.record)) == record
    names = {won["setting"] for won in record["winners"].values()}
    for row, won in record["winners"].items():
        assert won["test"]["everybody" if row == "params" else "own"]["n"] > 0
        folder = halved.folder / won["setting"]
        assert read(folder / "request.json")["judge"] == "validation"
    found = entry_of(halved.folder)
    assert isinstance(found, Entry)
    assert (found.state, len(names) <= 2) == ("finished", True)


def test_the_page_and_the_table_have_rungs_and_costs(halved: SimpleNamespace) -> None:
    page = (halved.folder / "report.html").read_text(encoding="utf-8")
    assert "the best 1/2 of a rung, at least one, went on" in page
    assert "full grid by arithmetic" in page
    assert "params, to round 2" in page
    first = halved.record["rungs"]["params"][0]
    for name in first["on"]:
        assert f"{first['reached'][name]:.3f} →" in page
    told = CliRunner().invoke(
        cli.app, ["sweep", "--resume", str(halved.folder)], env={"COLUMNS": "160"}
    )
    assert told.exit_code == 0, told.output
    for words in ("cost of the search", "params, to round 1", "all, full grid by arithmetic"):
        assert words in told.stdout
    assert " at round 1" in told.stdout
    assert "train.lr=1e+30, params: diverged: loss became" in told.stdout


# --- killed, failing, refused -----------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill."""


def killed_at(kind: str, number: int) -> Watch:
    seen: list[str] = []

    def watch(event: Mapping[str, Any]) -> None:
        if event["event"] == kind:
            seen.append(kind)
            if len(seen) == number:
                raise Killed

    return watch


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("setting_start", 3),  # within the first rung
        ("run_end", 4),  # its last setting is done, and nobody was chosen
        ("setting_start", 6),  # the first of the second rung
        ("round_start", 6),  # within a setting that goes on
        ("round_end", 8),  # within the last rung
        ("stage_start", 9),  # the winner is about to be tested
    ],
)
def test_a_search_killed_at_any_moment_ends_with_the_same_choice_and_files(
    kind: str, number: int, place: Path, halved: SimpleNamespace, tmp_path: Path
) -> None:
    what = asked(place, RATES)
    with pytest.raises(Killed):
        played(what, tmp_path / "out", killed_at(kind, number))
    found = entry_of(tmp_path / "out")
    assert isinstance(found, Entry)
    assert found.state != "finished"
    rounds: list[tuple[Any, Any]] = []
    which = [""]

    def watch(event: Mapping[str, Any]) -> None:
        if event["event"] == "setting_start":
            which[0] = event["setting"]
        if event["event"] == "round_end":
            rounds.append((which[0], event["round"]))

    record = played(read_sweep(tmp_path / "out"), tmp_path / "out", watch)
    assert len(rounds) == len(set(rounds)), "no closed round is played twice"
    whole = halved.record
    assert record["rungs"]["params"] == whole["rungs"]["params"]
    assert record["winners"]["params"] == whole["winners"]["params"]
    for mine, theirs in zip(record["settings"], whole["settings"], strict=True):
        assert mine["rows"].get("params") == theirs["rows"].get("params")
        assert mine["diverged"].get("params") == theirs["diverged"].get("params")
        assert timeless(mine["spent"]["params"]) == timeless(theirs["spent"]["params"])
    costs = (one["cost"]["rows"]["params"] for one in (record, whole))
    assert timeless(next(costs)) == timeless(next(costs))
    for one in record["settings"]:
        if one["rows"]:
            mine, theirs = (left(f / one["name"]) for f in (tmp_path / "out", halved.folder))
            for file in (name for name in mine if name.startswith(("stages/", "adapters/"))):
                assert mine[file] == theirs[file], file
    events: list[Any] = []
    played(what, tmp_path / "out", events.append)
    assert events == [], "a finished search plays nothing"


def failing(setting: str, round_: int, error: Exception) -> Watch:
    """Return a watch that fails a setting as a round of it begins."""
    which = [""]

    def watch(event: Mapping[str, Any]) -> None:
        if event["event"] == "setting_start":
            which[0] = event["setting"]
        if (event["event"], event.get("round")) == ("round_start", round_) and which[0] == setting:
            raise error

    return watch


def test_a_setting_that_diverges_in_a_later_rung_is_out_and_its_rounds_are_counted(
    place: Path, halved: SimpleNamespace, tmp_path: Path
) -> None:
    name, other = halved.record["rungs"]["params"][0]["on"]
    watch = failing(name, 3, TrainingError("loss became nan"))
    what = asked(place, RATES, halving=Halving(eta=2, rungs=(1, 4)))
    record = played(what, tmp_path / "out", watch)
    one = next(one for one in record["settings"] if one["name"] == name)
    assert one["diverged"] == {"params": "loss became nan"}
    assert one["rows"] == {}
    assert len(one["spent"]["params"]) == 2, "the rounds that it closed"
    last = record["rungs"]["params"][1]
    assert (list(last["reached"]), last["reached"][name]) == ([name, other], None)
    assert record["winners"]["params"]["setting"] == other
    cost = record["cost"]["rows"]["params"]
    each = {
        one["name"]: [spent["up_bytes"] for spent in one["spent"]["params"]]
        for one in record["settings"]
    }
    assert cost["rungs"][1]["up_bytes"] == sum(each[name][1:]) + sum(each[other][1:])
    assert cost["rungs"][1]["settings"] == 2
    full = each[other]
    assert len(full) == ROUNDS
    whole = [
        sum(parts) * (1 if n == name else sum(full) / max(sum(full[: len(parts)]), 1))
        for n, parts in each.items()
    ]
    assert cost["grid"]["up_bytes"] == round(sum(whole))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"{name}, params: diverged: loss became nan" in page


def test_a_row_that_fails_in_a_later_rung_leaves_the_other_rows_where_they_are(
    place: Path, tmp_path: Path
) -> None:
    what = asked(place, "train.lr=0.05,0.01", modes=("params", "logits"))
    failed: list[str] = []

    def watch(event: Mapping[str, Any]) -> None:
        if (event["event"], event.get("stage"), event.get("round")) == ("round_start", "params", 2):
            failed.append("once")
            raise JobError("the disk is elsewhere")

    record = played(what, tmp_path / "out", watch)
    assert len(failed) == 1, "the row is not tried again in the same rung"
    on = record["rungs"]["params"][0]["on"][0]
    assert "params" not in record["winners"]
    assert record["winners"]["logits"]["setting"]
    one = next(one for one in record["settings"] if one["name"] == on)
    assert one["failed"] == {"params": "the disk is elsewhere"}
    again = played(read_sweep(tmp_path / "out"), tmp_path / "out")
    assert again["winners"]["params"]["setting"] == on, "what failed is tried again"
    assert again["winners"]["logits"] == record["winners"]["logits"]


def test_a_row_that_failed_in_an_early_rung_is_not_tried_again_as_others_go_on(
    place: Path, tmp_path: Path
) -> None:
    what = asked(place, "train.lr=0.05,0.01", modes=("params", "logits"))
    failed: list[str] = []

    def watch(event: Mapping[str, Any]) -> None:
        if (event["event"], event.get("stage")) == ("round_start", "params"):
            failed.append("once")
            raise JobError("the disk is elsewhere")

    record = played(what, tmp_path / "out", watch)
    assert len(failed) == 2, "once a setting"
    assert list(record["winners"]) == ["logits"]
    for one in record["settings"]:
        assert one["failed"] == {"params": "the disk is elsewhere"}
        assert one["spent"]["params"] == []
    assert record["rungs"]["params"] == []


def test_a_search_of_which_nothing_has_a_figure_ends_without_a_winner(
    place: Path, tmp_path: Path
) -> None:
    record = played(asked(place, "train.lr=1e30,1e31"), tmp_path / "out")
    assert (record["winners"], record.get("rungs", {}).get("params", [])) == ({}, [])
    assert all("loss became" in one["diverged"]["params"] for one in record["settings"])


def test_a_single_setting_plays_all_its_rounds_at_once(place: Path, tmp_path: Path) -> None:
    started: list[Any] = []
    record = played(asked(place, "train.lr=0.05"), tmp_path / "out", started.append)
    assert [e["rounds"] for e in started if e["event"] == "setting_start"] == [ROUNDS]
    assert record["winners"]["params"]["setting"] == "train.lr=0.05"
    assert record["cost"]["grid"] == record["cost"]["total"]
    assert "until" not in read(tmp_path / "out" / "train.lr=0.05" / "request.json")


def test_another_eta_is_another_sweep(place: Path, halved: SimpleNamespace) -> None:
    other = asked(place, RATES, baselines=("local",), halving=Halving(eta=3, rungs=HALVES.rungs))
    with pytest.raises(JobError, match="holds another sweep"):
        played(other, halved.folder)


def triskel(*words: str) -> tuple[int, str, str]:
    got = CliRunner().invoke(cli.app, list(words))
    return got.exit_code, got.stdout, got.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            ["--set", RATES, "--halving", "1"],
            "greater than or equal to 2",
        ),
        (["--set", RATES, "--first-rounds", "1"], "--first-rounds is of --halving; give both"),
        (["--set", RATES, "--halving", "2", "--first-rounds", "4"], "below the job's rounds = 4"),
        (["--set", RATES, "--set", "rounds=1", "--halving", "2"], "the job has rounds = 1"),
        (["--set", "rounds=2,4", "--halving", "2"], "leave rounds out of what is tried"),
        (
            ["--set", RATES, "--set", "data.validation_share=0", "--halving", "2"],
            "--set data.validation_share=0.2",
        ),
        (["--resume", ".", "--halving", "2"], "leave out everything else"),
    ],
)
def test_what_cannot_be_halved_is_refused_before_anything_runs(
    words: list[str], why: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, said = triskel("sweep", str(place / "job.toml"), *words)
    assert (code, out) == (2, "")
    assert why in " ".join(said.split())
    assert list(tmp_path.iterdir()) == []
