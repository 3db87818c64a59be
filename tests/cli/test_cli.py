"""The command line: what it takes, what it refuses, and that a refusal is one sentence."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from typer.main import get_command
from typer.testing import CliRunner

from triskel import cli
from triskel.cli import options, output, training
from triskel.config.job import Job, ModeName
from triskel.config.read import dump, load, parse, to_toml
from triskel.config.sections import Override
from triskel.config.template import text as template
from triskel.core import run_folder
from triskel.core.registry import MODES
from triskel.data import assets
from triskel.errors import JobError, RoundError
from triskel.experiment import compare, demo, seeds
from triskel.report import conclusions, terminal

RUNNER = CliRunner()
COMMANDS = ["compare", "run", "report", "export", "evaluate", "predict", "chat", "init"]
RESULT: dict[str, Any] = {
    "schema": 1,
    "triskel": "0.1.0",
    "job": dump(load(None)),
    "environment": {},
    "data": {"classes": ["a", "b"], "public": 0, "clients": {}},
    "baselines": {"base": {"accuracy": 0.5, "loss": 0.7, "what": "always a", "per_client": {}}},
    "skipped": {},
    "modes": {},
}


def triskel(*words: str) -> tuple[int, str, str]:
    got = RUNNER.invoke(cli.app, list(words))
    return got.exit_code, got.stdout, got.stderr


def refusal(*words: str, code: int = 2) -> str:
    """What a refused command says: one line, and nothing on standard output."""
    exit_code, out, said = triskel(*words)
    assert (exit_code, out) == (code, "")
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said.removeprefix("error: ").rstrip("\n")


class Played:
    """Stands in for `compare.run` and `compare.resume`, and remembers how it was called."""

    def __init__(self, stop: BaseException | None = None, *, stages: bool = True) -> None:
        self.stop, self.stages = stop, stages
        self.asked: list[tuple[Any, ...]] = []

    def __call__(
        self, *given: object, settings: object = (), rounds: int | None = None
    ) -> Mapping[str, Any]:
        assert not settings
        assert rounds is None
        self.asked.append(given)
        folder = next(one for one in given if isinstance(one, Path))
        folder.mkdir(parents=True, exist_ok=True)
        if self.stages:
            (folder / "stages").mkdir()
            (folder / "a-file").write_text("")
        (folder / "job.toml").write_text("")
        empty = hashlib.sha256(b"").hexdigest()
        asked = {"modes": ["params"], "baselines": [], "strict": False, "job_sha256": empty}
        (folder / "request.json").write_text(json.dumps(asked))
        watch = given[-1]
        assert callable(watch)
        events: list[Mapping[str, Any]] = [
            {"event": "note", "text": "fetching [texts]"},
            {"event": "run_start", "clients": ["a", "b"], "examples": 1600, "stages": []},
        ]
        for event in events:
            watch(event)
        if self.stop is not None:
            raise self.stop
        return RESULT


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)  # test workers set it
    for name in cli.QUIET:
        monkeypatch.setenv(name, os.environ.get(name, ""))


@pytest.fixture(autouse=True)
def _an_untimed_demo_of_one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    one = demo.Choice(rung=replace(demo.LADDER[0], seeds=1), place=1, sentence="the demo: it")
    monkeypatch.setattr(demo, "timed", lambda _: 1e-6)
    monkeypatch.setattr(demo, "choose", lambda _: one)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    stand_in = Played()
    monkeypatch.setattr(compare, "run", stand_in)
    monkeypatch.setattr(compare, "resume", stand_in)
    return stand_in


# --- Help and mistypes ------------------------------------------------------------------------


def test_help_and_a_refused_job_load_no_heavy_library() -> None:
    script = (
        "import sys; from triskel import cli\n"
        "for words in (['--help'], ['compare', '--help'], ['compare', '--set', 'roundz=1']):\n"
        "    try: cli.app(words)\n"
        "    except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'plotly', 'numpy')"
        " if m in sys.modules])"
    )
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    after = os.times()
    assert done.stdout.splitlines()[-1] == "[]"
    assert "unknown key 'roundz'; did you mean 'rounds'?" in done.stderr
    spent = after.children_user - before.children_user
    assert spent < 2.0, "seconds of processor time for three commands"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_does(command: str) -> None:
    code, out, _ = triskel(command, "--help")
    assert code == 0
    assert f"triskel {command}" in out.replace("root", "triskel") or command in out


@pytest.mark.parametrize("debug", [True, False])
def test_other_libraries_are_kept_quiet(monkeypatch: pytest.MonkeyPatch, *, debug: bool) -> None:
    for name in cli.QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATASETS_VERBOSITY", "info")
    monkeypatch.setattr(sys, "warnoptions", [])
    warned: list[warnings.WarningMessage] = []

    def advises(*_: object) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.warn("use the new name", FutureWarning, stacklevel=1)
        warned.extend(caught)
        raise JobError("no")

    monkeypatch.setattr(training, "load", advises)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        triskel(*(["--debug"] if debug else []), "compare", "--set", "rounds=2")
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert os.environ["DATASETS_VERBOSITY"] == "info", "what a user has set stays"
    assert len(warned) == debug


def test_the_version_is_shown() -> None:
    assert triskel("--version") == (0, f"triskel {cli.VERSION}\n", "")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["comapre"], "compare"),
        (["assets", "gett"], "get"),
        (["compare", "--mods", "params"], "--modes"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_nearest(words: list[str], hint: str) -> None:
    code, _, said = triskel(*words)
    assert code == 2
    assert hint in said


def test_without_a_command_there_is_help() -> None:
    for words in ([], ["assets"]):
        _, out, said = triskel(*words)
        assert "Usage:" in out + said
        assert "get" in out + said or "compare" in out + said


@pytest.mark.parametrize(
    "words",
    [
        ["report", "nowhere"],
        ["export", "nowhere", "there"],
        ["evaluate", "nowhere"],
        ["run", "--resume", "nowhere"],
    ],
)
def test_a_run_folder_must_be_there(words: list[str]) -> None:
    code, _, said = triskel(*words)
    assert code == 2
    assert "nowhere" in said


# --- Refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["compare", "--modes", "parms"],
            "unknown mode 'parms'; did you mean 'params'? There are params, logits, split",
        ),
        (["compare", "--modes", "xyz"], "unknown mode 'xyz'; there are params, logits, split"),
        *(
            (
                [command, "--modes", nothing, "--baselines", "none"],
                f"nothing to run: name --modes (params, logits, split) or --baselines ({known})",
            )
            for command, known in (
                ("compare", "base, local, central, local_equal"),
                ("sweep", "local, central"),
            )
            for nothing in (",", "none")
        ),
        (
            ["compare", "--baselines", "base,centrall"],
            (
                "unknown baseline 'centrall'; did you mean 'central'? There are base, local, "
                "central, local_equal"
            ),
        ),
        (
            ["compare", "no.toml"],
            "job file no.toml does not exist; `triskel init` writes one",
        ),
        (["compare", "--set", "rounds"], "a setting is section.key=value, got 'rounds'"),
        (
            ["run"],
            (
                "give a job file, or --resume RUN; `triskel init` writes a job file, and "
                "`triskel compare` needs none"
            ),
        ),
        (
            ["assets", "get", "opinion"],
            "unknown asset 'opinion'; did you mean 'opinions'? There are smollm2-135m, opinions",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(words: list[str], sentence: str) -> None:
    assert refusal(*words) == sentence


def test_a_run_takes_one_mode() -> None:
    triskel("init")
    text = refusal("run", "job.toml", "--mode", "params,split")
    assert text == "--mode takes one name, got 'params,split'; `triskel compare` takes several"


@pytest.mark.parametrize(
    "more",
    [["job.toml"], ["--mode", "split"], ["--out", "x"], ["--baselines", ""]],
)
def test_a_resumed_run_takes_no_changes(more: list[str], tmp_path: Path) -> None:
    assert "--resume goes on with the job as it was" in refusal(
        "run", "--resume", str(tmp_path), *more
    )


def test_a_resumed_run_may_only_be_told_where_its_data_lie(tmp_path: Path) -> None:
    said = refusal("run", "--resume", str(tmp_path), "--set", "seed=1")
    assert "may only be told where its data lie: data.train, data.test, data.public" in said


def test_a_surprise_is_one_sentence_and_a_traceback_on_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by [zero]\nmore")

    monkeypatch.setattr(training, "load", broken)
    said = refusal("compare", "--set", "rounds=2", code=1)
    assert said.startswith("ZeroDivisionError: by [zero]; the traceback is in ")
    code, _, said = triskel("--debug", "compare", "--set", "rounds=2")
    assert code == 1
    assert "Traceback" in said
    assert "\nerror: ZeroDivisionError: by [zero]; the traceback is in " in said


def test_an_error_with_no_words_still_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(training, "load", broken)
    assert refusal("compare", "--set", "rounds=2", code=1).startswith("AssertionError: no message;")


# --- Running ----------------------------------------------------------------------------------


def test_compare_without_a_job_runs_the_demo_in_the_next_free_folder(played: Played) -> None:
    for number in (1, 2):
        code, out, said = triskel("compare")
        assert code == 0
        job, request, folder, engine, _ = played.asked[-1]
        assert job == engine.job == load(None)
        assert folder == Path(f"runs/opinions-{number}")
        assert request == compare.Request()
        assert f"Results  runs/opinions-{number}\n" in out
        assert f"{folder.resolve().as_uri()}/report.html" in out
        assert "base (always a)" in out
        assert "Only baselines were run." in out
        assert "fetching [texts]" in said
        assert "2 clients · 1,600 training texts · SmolLM2-135M-Instruct (" in said
        assert said.count(f"threads) · runs/opinions-{number}\n") == 1


@pytest.mark.parametrize(
    ("place", "name", "count"), [(1, "opinions", 5), (2, "opinions-rung-2", 3)]
)
def test_the_demo_plays_the_seeds_of_its_rung_and_names_it(
    played: Played, monkeypatch: pytest.MonkeyPatch, place: int, name: str, count: int
) -> None:
    choice = demo.Choice(rung=demo.LADDER[place - 1], place=place, sentence=f"rung {place}, why")
    speeds: list[float] = []

    def chosen(speed: float) -> demo.Choice:
        speeds.append(speed)
        return choice

    monkeypatch.setattr(demo, "choose", chosen)
    monkeypatch.setattr(seeds, "compare_seeds", played)
    code, out, said = triskel("compare")
    assert code == 0
    assert speeds == [1e-6]
    job, request, played_seeds, folder, _, _ = played.asked[-1]
    assert (job, list(played_seeds)) == (choice.job, list(range(count)))
    assert request == compare.Request()
    assert folder == Path(f"runs/{name}-1")
    assert f"rung {place}, why\n" in said
    assert out.endswith(f"\nThis was rung {place}, why.\n")


def test_the_next_folder_is_above_all_that_are_there() -> None:
    for name in ("job-9", "job-10", "job-x", "other-99", "job-11-copy"):
        Path("runs", name).mkdir(parents=True)
    assert run_folder.next_folder("job") == Path("runs/job-11")
    assert run_folder.next_folder("../a b/..") == Path("runs/a-b-1")
    assert run_folder.next_folder("..") == Path("runs/run-1")


def test_options_reach_the_run(played: Played) -> None:
    code, *_ = triskel(
        "compare",
        *("--modes", "split, params,split", "--baselines", "none", "--out", "here"),
        *("--set", "rounds=5", "--set", "train.lr=3e-4"),
    )
    assert code == 0
    job, request, folder, *_ = played.asked[-1]
    assert (job.rounds, job.train.lr, folder) == (5, 3e-4, Path("here"))
    assert request == compare.Request(modes=("split", "params"), baselines=())


def test_no_baselines_may_be_said_in_two_ways(played: Played) -> None:
    for none in ("", "none"):
        assert triskel("compare", "--baselines", none)[0] == 0
        assert played.asked[-1][1].baselines == ()


def test_what_came_out_is_said_line_by_line(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    del played
    lines = ["The first line is long: " + "word " * 60 + "end", "The [second] follows."]
    monkeypatch.setattr(conclusions, "verdict", lambda _: lines)
    out = triskel("compare")[1].splitlines()
    place = out.index(lines[0])
    assert out[place + 1] == lines[1]


def test_a_table_is_as_wide_as_asked_where_no_terminal_bounds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert output.console_for().width == output.PIPE_WIDTH
    monkeypatch.setenv("COLUMNS", "70")
    assert output.console_for().width == 70


@pytest.mark.parametrize(("words", "mode"), [([], "logits"), (["--mode", "split"], "split")])
def test_run_plays_one_mode(played: Played, words: list[str], mode: ModeName) -> None:
    Path("job.toml").write_text('mode = "logits"\nname = "mine"\n')
    code, *_ = triskel("run", "job.toml", *words, "--baselines", "base")
    assert code == 0
    job, request, folder, *_ = played.asked[-1]
    assert (job.mode, folder) == (mode, Path("runs/mine-1"))
    assert request == compare.Request(modes=(mode,), baselines=("base",), strict=True)


def test_resume_hands_the_folder_over(played: Played) -> None:
    Path("old").mkdir()
    code, out, _ = triskel("run", "--resume", "old")
    assert (code, played.asked[-1][0]) == (0, Path("old"))
    assert played.asked[-1][1](Job()).job == Job()
    assert "Report   old/report.html" in out


@pytest.mark.parametrize(
    ("stop", "code", "first"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (RoundError("no [client] answered"), 1, "error: no [client] answered"),
    ],
)
def test_what_stops_a_run_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, stop: BaseException, code: int, first: str
) -> None:
    monkeypatch.setattr(compare, "run", Played(stop))
    got, out, said = triskel("compare", "--out", "here")
    assert (got, out) == (code, "")
    assert said.splitlines()[-2:] == [
        first,
        "what was finished is in here; `triskel run --resume here` goes on",
    ]
    assert Path("here/stages").is_dir()


def test_an_early_interruption_promises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "run", Played(KeyboardInterrupt(), stages=False))
    _, _, said = triskel("compare")
    assert said.splitlines()[-1] == "interrupted"


def test_a_refused_job_leaves_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "run", Played(JobError("no"), stages=False))
    assert triskel("compare", "--out", "here")[0] == 2
    assert not Path("here").exists()


def test_a_run_that_fails_early_leaves_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "run", Played(RoundError("no"), stages=False))
    assert triskel("compare", "--out", "here")[0] == 1
    assert Path("here/job.toml").is_file()


def test_a_refused_job_leaves_what_it_did_not_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "run", Played(JobError("no"), stages=True))
    said = triskel("compare", "--out", "here")[2]
    assert "resume" not in said
    assert {path.name for path in Path("here").iterdir()} == {
        *("a-file", "job.toml", "request.json", "stages")
    }


def test_a_folder_that_is_not_empty_is_left_alone() -> None:
    Path("here").mkdir()
    Path("here/job.toml").write_text("mine")
    assert "here is not empty" in refusal("compare", "--out", "here")
    assert Path("here/job.toml").read_text() == "mine"


def test_a_request_to_end_is_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def ends(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training, "load", ends)
    monkeypatch.setattr(sys, "argv", ["triskel", "compare", "job.toml"])
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stop.value.code == 130


def test_a_reader_that_leaves_is_no_error() -> None:
    script = (
        "import sys; sys.argv = ['triskel', 'assets', 'list']; from triskel.cli import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode in {0, 1}


def test_names_are_those_of_compare() -> None:
    assert options.BASELINE_NAMES == compare.BASELINES


# --- After a run ------------------------------------------------------------------------------


def test_report_writes_the_page_anew() -> None:
    Path("run").mkdir()
    Path("run/result.json").write_text(json.dumps(RESULT))
    code, out, _ = triskel("report", "run")
    assert (code, out.splitlines()[0]) == (0, "run/report.html")
    assert Path("run/report.html").is_file()


def test_export_hands_over_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def export_run(*given: Path, say: Callable[[str], None], **named: object) -> None:
        asked.append((given, named))
        say("there/params")

    monkeypatch.setitem(
        sys.modules, "triskel.export.adapters", SimpleNamespace(export_run=export_run)
    )
    Path("run").mkdir()
    words = ["--mode", "local", "--client", "a", "--merge"]
    assert triskel("export", "run", "there", *words) == (0, "there/params\n", "")
    assert asked == [
        ((Path("run"), Path("there")), {"mode": "local", "client": "a", "merge": True})
    ]


def test_evaluate_shows_a_table_of_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def assess(
        run: Path, *, mode: str | None, data: Path | None, model: Path | None, settings: object,
        watch: object,
    ) -> Mapping[str, Any]:  # fmt: skip
        asked.append((run, mode, data, model))
        assert settings == ["data.train=x.csv"]
        assert isinstance(watch, terminal.Live)
        return {
            "mode": "split",
            "accuracy": 0.5,
            "macro_f1": 0.25,
            "per_client": {"[a]": {"accuracy": 1.0, "examples": 1000}, "b": {"accuracy": 0.0}},
        }

    monkeypatch.setitem(
        sys.modules, "triskel.experiment.reevaluate", SimpleNamespace(assess=assess)
    )
    Path("run").mkdir()
    code, out, _ = triskel(
        "evaluate", "run", "--data", "more.csv", "--model", "run", "--set", "data.train=x.csv"
    )
    assert (code, asked) == (0, [(Path("run"), None, Path("more.csv"), Path("run"))])
    assert [line.split() for line in out.splitlines()] == [
        ["split", "accuracy", "macro", "f1", "examples"],
        ["[a]", "1.000", "–", "1,000"],
        ["b", "0.000", "–", "–"],
        ["all", "together", "0.500", "0.250", "–"],
        [],
        ["Scored", "on", "the", "texts", "of", "more.csv."],
    ]


def test_evaluate_ends_with_both_columns_and_says_which_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def assess(*_: object, **__: object) -> Mapping[str, Any]:
        return {
            "mode": "logits",
            "accuracy": 0.5,
            "examples": 4,
            "everybody": {"accuracy": 0.5},
            "own": {"accuracy": 0.75},
            "per_client": {"a": {"accuracy": 0.75, "examples": 4}},
            "judge": "validation",
        }

    monkeypatch.setitem(
        sys.modules, "triskel.experiment.reevaluate", SimpleNamespace(assess=assess)
    )
    Path("run").mkdir()
    code, out, _ = triskel("evaluate", "run")
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["logits", "accuracy", "examples"],
        ["a", "0.750", "4"],
        ["everybody's", "texts", "0.500", "4"],
        ["own", "texts", "0.750", "4"],
        [],
        ["Scored", "on", "the", "run's", "own", "validation", "texts."],
    ]


def test_folders_of_several_runs_are_told_from_runs(tmp_path: Path) -> None:
    text, asked = to_toml(load(None)), {"modes": [], "baselines": [], "strict": False}
    several, sweep = tmp_path / "several", tmp_path / "sweep"
    for run in (several, several / "seed-0", several / "seed-1", sweep / "b", sweep / "a"):
        run.mkdir(parents=True)
        (run / "job.toml").write_text(text)
        more = {"seeds": [0, 1]} if run == several else {}
        (run / "request.json").write_text(json.dumps(asked | more))
    (sweep / "sweep.json").write_text("{}")
    for command, more in (("evaluate", ()), ("export", ("zz",))):
        told = refusal(command, str(several), *more)
        assert told.endswith(
            f"several seeds; name the folder of one seed, such as {several}/seed-0"
        )
        told = refusal(command, str(sweep), *more)
        assert told.endswith(f"a sweep; name the folder of one setting, such as {sweep}/a")
    for folder, command in ((several, "run"), (sweep, "sweep")):
        for more in ((), ("--seeds", "2"), ("--set", "seed=1")):
            told = refusal("compare", "--out", str(folder), *more)
            assert told.endswith(f"or resume it with `triskel {command} --resume {folder}`")
    told = refusal("run", "--resume", str(sweep))
    assert told == f"{sweep} holds a sweep; `triskel sweep --resume {sweep}` goes on"
    (tmp_path / "other" / "thing").mkdir(parents=True)
    told = refusal("compare", "--out", str(tmp_path / "other"))
    assert told == f"{tmp_path / 'other'} is not empty; choose another --out"


# --- Beginning --------------------------------------------------------------------------------


def test_init_writes_the_demonstration_and_keeps_a_file_that_is_there() -> None:
    assert triskel("init", "jobs/mine.toml")[0] == 0
    assert load(Path("jobs/mine.toml")) == load(None)
    assert refusal("init", "jobs/mine.toml") == "jobs/mine.toml exists; --force replaces it"
    Path("jobs/mine.toml").write_text("seed = 1")
    assert triskel("init", "jobs/mine.toml", "--force")[0] == 0
    assert load(Path("jobs/mine.toml")) == load(None)


def test_init_says_why_it_cannot_write() -> None:
    Path("file").write_text("")
    assert refusal("init", "file/job.toml").startswith("file/job.toml cannot be written: ")


TEMPLATE = template()


def keys_of(part: type[BaseModel], *place: str) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, field in part.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += keys_of(inner, *place, name)
        elif name != "each":
            found.append((*place, name))
    return found


def test_the_job_file_says_every_key_with_its_default() -> None:
    written, default = tomllib.loads(TEMPLATE), dump(Job())
    specs = MODES.built_in()
    for key in [*keys_of(Job), *(k for s in specs for k in keys_of(s.options, s.name))]:
        mine: Any = written
        known: Any = default
        for name in key:
            mine, known = mine.get(name), known.get(name)
        if known is None:
            assert f"# {key[-1]} = " in TEMPLATE, key
        elif mine != known:
            value, default_ = re.escape(str(mine)), re.escape(str(known))
            pattern = rf'^{key[-1]} = "?{value}"? +# .*(?:\n +# .*)?\[{default_}\]'
            assert re.search(pattern, TEMPLATE, re.MULTILINE), key
    for name in (*Override.model_fields, "cut"):
        assert f"# {name} = " in TEMPLATE


def test_commented_keys_and_examples_of_the_job_file_are_jobs() -> None:
    head, tail = TEMPLATE.split("# --- Sources of data")
    for line in head.splitlines():
        body = line.removeprefix("# ").partition("  # ")[0].strip()
        if line.startswith("# ") and " = " in body:
            tomllib.loads(body)
    films = Override(model="path/of/another", rank=4, epochs=2, cut=(4, 28))
    assert load_each(head) == {"films": films}
    examples = [part for part in tail.split("\n#\n") if "#     [" in part]
    assert len(examples) == 5
    table = ""
    for part in examples:
        text = "\n".join(
            line.removeprefix("#     ") for line in part.splitlines() if line.startswith("#     ")
        )
        if text.startswith("[clients]"):
            text = table.partition("[clients]")[0] + text
        table = text
        assert parse(text).data.source != "opinions"


def load_each(head: str) -> Mapping[str, Override]:
    """The example of what one client does differently, with its `#` taken away."""
    start = head.index("# [clients.each")
    lines = head[start:].partition("\n\n")[0].splitlines()
    return parse("\n".join(line.removeprefix("# ") for line in lines)).clients.each


def test_assets_are_listed() -> None:
    code, out, _ = triskel("assets", "list")
    assert code == 0
    for name, asset in assets.ASSETS.items():
        assert name in out
        assert asset.licence in out


@pytest.mark.parametrize(
    ("words", "got"),
    [((), ("smollm2-135m", "opinions")), (("opinions", "opinions"), ("opinions",))],
)
def test_assets_are_fetched(
    monkeypatch: pytest.MonkeyPatch, words: Sequence[str], got: Sequence[str]
) -> None:
    def fetch(name: str, *, say: Callable[[str], None]) -> Path:
        say(f"{name} is there")
        return Path(name)

    monkeypatch.setattr(assets, "get", fetch)
    text = "".join(f"{name} is there\n" for name in got)
    assert triskel("assets", "get", *words) == (0, text, "")


def test_modes_complete() -> None:
    assert options.mode_names() == ["params", "logits", "split"]
    assert options.trained_names() == [*options.mode_names(), "central", "local"]


def test_the_application_is_a_plain_typer_one() -> None:
    assert isinstance(cli.app, typer.Typer)
    assert set(COMMANDS) <= set(getattr(get_command(cli.app), "commands", ()))
