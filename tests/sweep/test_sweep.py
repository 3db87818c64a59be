"""A sweep: settings chosen on validation rows, tested once chosen, and gone on with when killed."""

import json
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opened import listen
from typer.testing import CliRunner

from triskel import cli
from triskel import sweep as sweeps
from triskel.config.grid import settings_of
from triskel.config.job import Job
from triskel.config.read import to_toml
from triskel.data.federate import federate
from triskel.data.rows import Rows
from triskel.engines.local import LocalEngine
from triskel.errors import CheckpointError, JobError, MeterError
from triskel.experiment import tokens
from triskel.experiment.compare import Request, read_run, run
from triskel.experiment.reevaluate import assess
from triskel.export.adapters import export_run
from triskel.report.columns import columns
from triskel.sweep import Sweep, ranked, read_sweep, setting

SMALL = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
RATES = "train.lr=1e-3,0.05"
TIMES = {"seconds", "compute_s", "peak_bytes", "plain"}


def ignore(event: object) -> None:
    """Take note of nothing."""
    del event


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a job file, its model, and rows to train and to test on."""
    folder = tmp_path_factory.mktemp("sweep")
    SMALL.save_model(folder / "model")
    train = SMALL.save_rows(folder / "rows.csv", 60)
    test = SMALL.save_rows(folder / "the-tests.csv", 20, start=100)
    job = SMALL.job(
        folder / "model", train, data={"test": str(test), "validation_share": 0.25}, name="loans"
    )
    (folder / "job.toml").write_text(to_toml(job), encoding="utf-8")
    return folder


def asked(place: Path, *given: str, **more: Any) -> Sweep:  # noqa: ANN401 - of a sweep
    base, several = settings_of(place / "job.toml", given)
    return Sweep(job=base, settings=several, **{"modes": ("params",), **more})


def played(what: Sweep, folder: Path, watch: Callable[[Any], None] = ignore) -> dict[str, Any]:
    return sweeps.sweep(what, folder, LocalEngine, watch)


def timeless(found: object) -> object:
    """What a result holds beside times, which no two runs share."""
    if isinstance(found, dict):
        return {k: timeless(v) for k, v in found.items() if k.partition(":")[0] not in TIMES}
    return [timeless(one) for one in found] if isinstance(found, list) else found


def read(file: Path) -> Any:  # noqa: ANN401 - JSON
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(place: Path) -> SimpleNamespace:
    """A sweep over two rates, of everything."""
    what = asked(place, RATES, modes=("params", "logits", "split"), baselines=("local", "central"))
    folder = place / "whole"
    return SimpleNamespace(asked=what, folder=folder, record=played(what, folder))


# --- what it is -------------------------------------------------------------------------------


def test_a_sweep_of_one_setting_is_a_comparison_on_validation_rows(place: Path) -> None:
    what = asked(place, "train.lr=0.05", modes=("params", "logits"), baselines=("local",))
    record = played(what, place / "one")
    job = what.settings[0].job
    request = Request(modes=("params", "logits"), baselines=("local",), judge="validation")
    plain = run(job, request, place / "plain", LocalEngine(job), ignore)
    folder = place / "one" / record["settings"][0]["folder"]
    assert read_run(folder) == read_run(place / "plain") == (job, request)
    assert timeless(read(folder / "result.json")) == timeless(json.loads(json.dumps(plain)))
    for row in ("local", "params", "logits"):
        won = record["winners"][row]
        assert won["setting"] == "train.lr=0.05"
        assert won["validation"] == columns(plain, row)
        tested = assess(place / "plain", mode=row, judge="test", watch=ignore)
        assert won["test"]["own" if row == "local" else "everybody"]["loss"] == tested["loss"]
        assert tested["examples"] == 20


def test_figures_are_those_of_validation_rows_until_a_row_is_won(whole: SimpleNamespace) -> None:
    job = whole.asked.settings[0].job
    held = federate(job, "validation").clients.values()
    for one in whole.record["settings"]:
        result = read(whole.folder / one["folder"] / "result.json")
        assert result["request"]["judge"] == "validation"
        assert result["data"]["validation"] == sum(len(h.test) for h in held)
        for row in whole.asked.rows:
            assert one["rows"][row].items() >= (columns(result, row) or {"": 0}).items()
        for mode in whole.asked.modes:
            totals = result["modes"][mode]["totals"]
            assert one["rows"][mode]["client_flops"] == totals["client_flops"]
            assert one["rows"][mode]["server_flops"] == totals["server_flops"]
            sent = totals["up"]["message_bytes"] + totals["down"]["message_bytes"]
            assert one["rows"][mode]["bytes"] == sent


def test_a_winner_is_tested_on_everybody_s_and_on_own_texts(whole: SimpleNamespace) -> None:
    assert list(whole.record["winners"]) == ["local", "central", "params", "logits", "split"]
    for row, won in whole.record["winners"].items():
        folder = whole.folder / won["setting"]
        found = assess(folder, mode=row, judge="test", watch=ignore)
        each = found["per_client"].values()
        own = sum(one["accuracy"] * one["examples"] for one in each) / 20
        assert won["test"]["own"]["accuracy"] == pytest.approx(own)
        reached = found["global_accuracy"] if row == "local" else found["accuracy"]
        assert won["test"]["everybody"]["accuracy"] == reached


def test_a_setting_says_that_its_figures_are_on_validation_texts(
    whole: SimpleNamespace, tmp_path: Path
) -> None:
    folder = whole.folder / whole.asked.settings[0].name
    assert assess(folder, mode="params", watch=ignore)["judge"] == "validation"
    assert assess(folder, mode="params", judge="test", watch=ignore)["judge"] == "test"
    told = CliRunner().invoke(cli.app, ["evaluate", str(folder), "--mode", "params"])
    assert told.stdout.endswith("Scored on the run's own validation texts.\n")
    export_run(folder, tmp_path / "out", mode="params", say=ignore)
    for place in (folder / "adapters" / "params", tmp_path / "out"):
        card = (place / "README.md").read_text(encoding="utf-8")
        assert "| | everybody's validation texts | own validation texts |" in card
        assert "The figures hold for validation texts" in card
        assert "test texts" not in card


def test_the_page_of_a_sweep_is_written_anew(whole: SimpleNamespace) -> None:
    page = whole.folder / "report.html"
    before = page.read_bytes()
    page.unlink()
    told = CliRunner().invoke(cli.app, ["report", str(whole.folder)])
    assert (told.exit_code, told.stdout.splitlines()[0]) == (0, str(page))
    assert page.read_bytes() == before


def test_the_record_is_on_disk_with_a_page_and_run_folders(whole: SimpleNamespace) -> None:
    assert read(whole.folder / "sweep.json") == json.loads(json.dumps(whole.record))
    names = {one.name for one in whole.asked.settings}
    files = {"sweep.json", "sources.json", "report.html"}
    assert {p.name for p in whole.folder.iterdir()} == {*files, *names}
    page = (whole.folder / "report.html").read_text(encoding="utf-8")
    for one in whole.record["settings"]:
        assert one["name"] in page
        assert (whole.folder / one["folder"] / "report.html").exists()
    for won in whole.record["winners"].values():
        assert f"{won['test']['everybody']['accuracy']:.3f}" in page
    assert "http://" not in page.partition("<script>")[0]


# --- no test row is read before its winner is known ------------------------------------------


def write_texts(file: Path, count: int, what: str) -> None:
    """Write texts of which no two are alike."""
    lines = [f"{what}-{i} {SMALL.text(3, i)},{SMALL.LABELS[i % 3]},w1" for i in range(count)]
    file.write_text("\n".join(["text,label,answer", *lines, ""]), encoding="utf-8")


@pytest.mark.parametrize("held_out", [False, True])
def test_no_test_text_is_read_before_the_ranking_is_written(
    *, held_out: bool, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_texts(tmp_path / "rows.csv", 60, "row")
    write_texts(tmp_path / "the-tests.csv", 20, "test")
    named = {} if held_out else {"test": str(tmp_path / "the-tests.csv")}
    data = {"validation_share": 0.25, **named}
    job = SMALL.job(place / "model", tmp_path / "rows.csv", data=data)
    (tmp_path / "job.toml").write_text(to_toml(job), encoding="utf-8")
    what = asked(tmp_path, RATES, modes=("params", "logits"), baselines=("local",))
    tests = {text for held in federate(job).clients.values() for text in held.test.text}
    assert len(tests) == (12 if held_out else 20)
    counted = {False: 0, True: 0}
    opens: list[bool] = []

    def ranked_yet() -> bool:
        file = tmp_path / "out" / "sweep.json"
        return file.exists() and bool(read(file)["winners"])

    def heard(path: str) -> None:
        if path.endswith("the-tests.csv"):
            opens.append(ranked_yet())

    real = tokens.tokenise

    def tokenise(rows: Rows, *given: Any, **named: Any) -> Any:  # noqa: ANN401 - as it is called
        counted[ranked_yet()] += len(set(rows.text) & tests)
        return real(rows, *given, **named)

    monkeypatch.setattr(tokens, "tokenise", tokenise)
    listen(monkeypatch, heard)
    played(what, tmp_path / "out")
    assert counted[False] == 0
    assert counted[True] == 3 * len(tests), "every winner is tested, once"
    assert opens == ([] if held_out else [True] * 3)


# --- ranking ----------------------------------------------------------------------------------


def entry(name: str, **rows: Mapping[str, float]) -> dict[str, Any]:
    told = {
        row: {
            "everybody": {"accuracy": e, "perplexity": e},
            "own": {"accuracy": o, "perplexity": o},
        }
        for row, (e, o) in rows.items()
    }
    return {"name": name, "rows": told}


def test_each_row_has_its_own_winner_by_its_own_column() -> None:
    settings = [
        entry("a", params=(0.5, 0.9), local=(0.9, 0.2)),
        entry("b", params=(0.6, 0.1), local=(0.1, 0.3)),
    ]
    won = ranked(settings, ["local", "params", "split"], "accuracy")
    assert {row: one["setting"] for row, one in won.items()} == {"local": "b", "params": "b"}
    assert won["params"]["validation"] == settings[1]["rows"]["params"]


def test_perplexity_is_better_the_lower_and_what_is_not_finite_wins_nothing() -> None:
    settings = [
        entry("a", params=(float("inf"), 1)),
        entry("b", params=(3.0, 1)),
        entry("c", params=(2.0, 1)),
        entry("d", params=(float("nan"), 1)),
        entry("e"),
    ]
    assert ranked(settings, ["params"], "perplexity")["params"]["setting"] == "c"
    assert ranked(settings[:1], ["params"], "perplexity") == {}


def test_the_first_of_level_settings_wins() -> None:
    settings = [entry(name, params=(0.5, 0)) for name in "abc"]
    assert ranked(settings, ["params"], "accuracy")["params"]["setting"] == "a"
    assert ranked(settings, ["params"], "perplexity")["params"]["setting"] == "a"


def test_a_causal_sweep_ranks_by_perplexity(place: Path, tmp_path: Path) -> None:
    job = SMALL.job(
        place / "model", place / "rows.csv", task="causal", data={"validation_share": 0.25}
    )
    (tmp_path / "job.toml").write_text(to_toml(job), encoding="utf-8")
    record = played(asked(tmp_path, "train.lr=1e-9,0.05", baselines=("local",)), tmp_path / "out")
    assert record["figure"] == "perplexity"
    for row, column in (("params", "everybody"), ("local", "own")):
        reached = {s["name"]: s["rows"][row][column]["perplexity"] for s in record["settings"]}
        assert record["winners"][row]["setting"] == min(reached, key=lambda n: reached[n])
        assert record["winners"][row]["test"][column]["perplexity"] > 1


# --- failures ---------------------------------------------------------------------------------


def test_a_setting_that_diverges_is_named_and_the_sweep_goes_on(
    place: Path, tmp_path: Path
) -> None:
    what = asked(place, "train.lr=1e30,1e-3", modes=("params", "logits"), baselines=("central",))
    record = played(what, tmp_path / "out")
    bad, good = record["settings"]
    assert set(bad["diverged"]) == {"central", "params", "logits"}
    assert bad["diverged"]["params"].startswith("loss became")
    assert bad["rows"] == good["diverged"] == good["failed"] == {}
    assert {won["setting"] for won in record["winners"].values()} == {"train.lr=0.001"}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "train.lr=1e+30, params: diverged: loss became" in page
    events: list[Mapping[str, Any]] = []
    played(what, tmp_path / "out", events.append)
    assert events == [], "what diverged is not begun again"


def test_a_row_that_fails_does_not_take_the_setting_s_other_rows_with_it(
    place: Path, tmp_path: Path
) -> None:
    what = asked(
        place,
        "split.cut=[0, 99],[1, 2]",
        "adapter.blocks=top:2",
        modes=("split", "params"),
        baselines=("local",),
    )
    bad, good = played(what, tmp_path / "out")["settings"]
    assert set(bad["failed"]) == {"split"}
    assert "99" in bad["failed"]["split"]
    assert set(bad["rows"]) == {"local", "params"}
    assert set(good["rows"]) == {"local", "split", "params"}
    assert bad["rows"]["params"] == good["rows"]["params"]


def test_a_setting_that_cannot_begin_is_named_and_the_sweep_goes_on(
    place: Path, tmp_path: Path
) -> None:
    what = asked(place, "logits.public=10000,6", modes=("params", "logits"))
    bad, good = played(what, tmp_path / "out")["settings"]
    assert set(bad["failed"]) == {"params", "logits"}
    assert "data.public_count asks for 10000" in bad["failed"]["params"]
    assert good["failed"] == bad["rows"] == {}


def test_what_failed_is_tried_again_and_what_diverged_is_not(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = asked(place, "train.lr=1e30,1e-3", modes=("params", "split"))
    real, stopped = setting.run, list[str]()

    def stops(job: Job, *given: Any) -> Any:  # noqa: ANN401 - as `run`
        if job.train.lr == 1e-3 and not stopped:
            stopped.append("once")
            raise MeterError("the meter stuck")
        return real(job, *given)

    monkeypatch.setattr(setting, "run", stops)
    first = played(what, tmp_path / "out")
    assert first["settings"][1]["failed"] == dict.fromkeys(what.modes, "the meter stuck")
    assert set(first["settings"][0]["diverged"] | first["settings"][0]["failed"]) == {
        "params", "split",
    }  # fmt: skip
    assert first["winners"] == {}
    begun: list[str] = []

    def watch(event: Mapping[str, Any]) -> None:
        if event["event"] == "stage_start" and event["rounds"]:
            begun.append(event["stage"])

    again = played(what, tmp_path / "out", watch)
    assert again["settings"][1]["failed"] == {}
    assert set(again["winners"]) == {"params", "split"}
    assert begun.count("params") == 1, "what diverged stays left out"


# --- going on ---------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill."""


def killed_at(kind: str, number: int) -> Callable[[Mapping[str, Any]], None]:
    seen: list[str] = []

    def watch(event: Mapping[str, Any]) -> None:
        if event["event"] == kind:
            seen.append(kind)
            if len(seen) == number:
                raise Killed

    return watch


@pytest.mark.parametrize(
    ("kind", "number"),
    [("run_start", 1), ("round_end", 1), ("stage_end", 2), ("run_end", 1), ("round_start", 3)],
)
def test_a_killed_sweep_goes_on_and_plays_nothing_twice(
    kind: str, number: int, place: Path, tmp_path: Path, whole: SimpleNamespace
) -> None:
    what = asked(place, RATES, modes=("params", "logits"))
    with pytest.raises(Killed):
        played(what, tmp_path / "out", killed_at(kind, number))
    rounds: list[tuple[str, Any]] = []
    which = [""]

    def watch(event: Mapping[str, Any]) -> None:
        if event["event"] == "setting_start":
            which[0] = event["setting"]
        if event["event"] == "round_end":
            rounds.append((which[0], event["stage"]))

    record = played(read_sweep(tmp_path / "out"), tmp_path / "out", watch)
    assert len(rounds) == len(set(rounds))
    before = {"run_start": 0, "round_end": 1, "stage_end": 2, "run_end": 2, "round_start": 2}[kind]
    assert len(rounds) == 4 - before
    plain = whole.record
    for mine, theirs in zip(record["settings"], plain["settings"], strict=True):
        for row in ("params", "logits"):
            assert mine["rows"][row] == theirs["rows"][row]
    for row in ("params", "logits"):
        assert record["winners"][row] == plain["winners"][row]


def test_rows_that_change_between_two_settings_end_the_sweep(place: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_bytes((place / "rows.csv").read_bytes())
    what = asked(place, RATES, f"data.train={rows}")
    with pytest.raises(Killed):
        played(what, tmp_path / "out", killed_at("setting_start", 2))
    rows.write_text(rows.read_text(encoding="utf-8").replace(",good", ",bad"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="has other rows than when the runs in"):
        played(read_sweep(tmp_path / "out"), tmp_path / "out")


def test_a_sweep_killed_while_it_tests_tests_what_is_left(place: Path, tmp_path: Path) -> None:
    what = asked(place, RATES, modes=("params", "split"))
    with pytest.raises(Killed):
        played(what, tmp_path / "out", killed_at("stage_end", 6))
    there = read(tmp_path / "out" / "sweep.json")["winners"]
    assert ["test" in won for won in there.values()] == [True, False]
    events: list[Mapping[str, Any]] = []
    record = played(what, tmp_path / "out", events.append)
    assert [e["stage"] for e in events if e["event"] == "stage_end"] == ["split"]
    assert record["winners"]["params"] == there["params"]


def test_a_finished_sweep_plays_nothing(whole: SimpleNamespace) -> None:
    events: list[Mapping[str, Any]] = []
    assert played(whole.asked, whole.folder, events.append) == json.loads(json.dumps(whole.record))
    assert events == []


@pytest.mark.parametrize("given", [["train.lr=1e-3,0.06"], ["train.lr=1e-3,0.05", "rounds=2"]])
def test_another_sweep_in_the_same_folder_is_refused(
    given: list[str], place: Path, whole: SimpleNamespace
) -> None:
    more = {"modes": whole.asked.modes, "baselines": whole.asked.baselines}
    with pytest.raises(JobError, match=r"holds another sweep; .* triskel sweep --resume") as caught:
        played(asked(place, *given, **more), whole.folder)
    assert "\n" not in str(caught.value)


def test_other_modes_are_another_sweep(place: Path, whole: SimpleNamespace) -> None:
    with pytest.raises(JobError, match="holds another sweep"):
        played(asked(place, RATES), whole.folder)


def test_a_folder_that_holds_something_else_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("", encoding="utf-8")
    with pytest.raises(JobError, match="is not an empty folder; choose another --out"):
        played(asked(place, RATES), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_job_that_was_changed_within_a_sweep_is_refused(place: Path, tmp_path: Path) -> None:
    what = asked(place, RATES)
    with pytest.raises(Killed):
        played(what, tmp_path / "out", killed_at("run_start", 1))
    file = tmp_path / "out" / what.settings[1].name / "job.toml"
    file.write_text(file.read_text(encoding="utf-8").replace("0.05", "0.06"), encoding="utf-8")
    for again in (lambda: read_sweep(tmp_path / "out"), lambda: played(what, tmp_path / "out")):
        with pytest.raises(CheckpointError, match="is not the job this sweep began with"):
            again()


@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"schema": 1, "job": 3}'])
def test_a_record_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError):
        read_sweep(tmp_path)


@pytest.mark.parametrize(
    "text", ["{}", '{"schema": 1, "job": 3}', '{"schema": 1, "settings": [1]}']
)
def test_no_page_is_made_of_a_record_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(text, encoding="utf-8")
    (tmp_path / "report.html").write_text("as it was", encoding="utf-8")
    code, _, told = triskel("report", str(tmp_path))
    assert code
    assert "sweep.json is damaged: it lacks " in told
    assert told.endswith("; put back the file that the sweep wrote\n")
    assert "Traceback" not in told
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "as it was"


def test_settings_of_two_tasks_are_refused(place: Path, tmp_path: Path) -> None:
    what = asked(place, "data.task=classify,causal")
    with pytest.raises(JobError, match=r"one task; leave data\.task out"):
        played(what, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the command ------------------------------------------------------------------------------


def triskel(*words: str) -> tuple[int, str, str]:
    got = CliRunner().invoke(cli.app, list(words))
    return got.exit_code, got.stdout, got.stderr


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in cli.QUIET:
        monkeypatch.setenv(name, "")
    return place / "job.toml"


def test_the_command_says_each_setting_and_ends_with_one_table(here: Path) -> None:
    code, out, said = triskel("sweep", str(here), "--set", RATES, "--modes", "params")
    assert code == 0, said
    assert "setting 1 of 2: train.lr=0.001\n" in said
    assert "setting 2 of 2: train.lr=0.05\n" in said
    record = read(Path("runs/loans-1/sweep.json"))
    won = record["winners"]["params"]
    figures = {s["name"]: s["rows"]["params"]["everybody"]["accuracy"] for s in record["settings"]}
    lines = [line.split() for line in out.splitlines() if line]
    for name, value in figures.items():
        marked = ["★"] if name == won["setting"] else []
        assert [name, *marked, f"{value:.3f}"] in lines
    tested = f"{won['test']['everybody']['accuracy']:.3f}"
    assert [*["★", "on", "test", "texts,", "everybody's", "texts"], tested] in lines
    assert triskel("sweep", "--resume", "runs/loans-1")[0] == 0


def test_the_command_fails_only_if_every_setting_did(here: Path) -> None:
    code, out, _ = triskel("sweep", str(here), "--set", "train.lr=1e30,1e31", "--modes", "params")
    assert code == 1
    assert "train.lr=1e+31, params: diverged: loss became" in out


def test_without_a_validation_share_the_command_says_what_to_set(here: Path) -> None:
    plain = ("sweep", str(here), "--set", RATES, "--set", "data.validation_share=0")
    code, out, said = triskel(*plain)
    assert (code, out) == (2, "")
    assert "--set data.validation_share=0.2" in said
    assert said.count("error: ") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "nothing to sweep over"),
        (["--set", "train.lr=1,,2"], "empty value"),
        (["--set", "train.lrr=1,2"], "unknown key 'train.lrr'"),
        (["--set", RATES, "--baselines", "base"], "unknown baseline 'base'"),
        (["--set", RATES, "--modes", "parms"], "did you mean 'params'?"),
        (["--set", RATES, "--resume", "."], "leave out everything else"),
        (["--set", RATES, "--set", "model.path=./mdl"], "model folder ./mdl does not exist"),
        (["--set", RATES, "--set", "data.text=txt"], "has no column 'txt'; did you mean 'text'?"),
        (["--set", "data.train=a.csv,b.csv"], "a.csv does not exist"),
    ],
)
def test_what_the_command_cannot_do_is_one_sentence(words: list[str], why: str, here: Path) -> None:
    code, out, said = triskel("sweep", str(here), *words)
    assert (code, out) == (2, "")
    assert why in said
    assert said.count("\n") == 1
