"""No exception of a library reaches who uses the command line: one sentence, and a log that has it.

Every command there is is walked, with exceptions of every kind that libraries raise; and a run is
broken at every place where it calls a library.
"""

# ruff: noqa: ANN401 - click's

import errno
import os
import re
import runpy
import stat
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pyarrow as pa
import pytest
import safetensors
import torch
import transformers
from typer.main import get_command
from typer.testing import CliRunner

from triskel import cli
from triskel.core import crash
from triskel.data import batches
from triskel.errors import DataError
from triskel.experiment import checkpoint, compare, folder, records, resources, summary
from triskel.export import adapters
from triskel.model.shared import SharedModel
from triskel.report import page

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "small.py")))
RUNNER = CliRunner()
TOKEN = "hf_abcdefghijklmnopqrst"  # noqa: S105 - of nobody


class PanicException(BaseException):
    """As of libraries in Rust: it is no `Exception`."""


SURPRISES: tuple[BaseException, ...] = (
    OSError(errno.ENOSPC, "No space left on device", "/data/x"),
    PermissionError(errno.EACCES, "Permission denied"),
    MemoryError(),
    RecursionError("maximum recursion depth exceeded"),
    torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 MiB."),
    RuntimeError("shape '[3]' is invalid\nfor input of size 4"),
    safetensors.SafetensorError("Error while deserializing header"),
    pa.ArrowInvalid("Could not open Parquet input source"),
    PanicException("called `Option::unwrap()` on a `None` value"),
    ImportError("This modeling file requires einops"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    AssertionError(),
    KeyError("model_type"),
    ExceptionGroup("several", [ValueError("one")]),
)


def leaves(group: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Return every command below a group, with the words that name it."""
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from leaves(one, (*before, name))
        else:
            yield (*before, name), one


COMMAND = get_command(cli.app)
EVERY = dict(leaves(COMMAND))


def needed(command: Any, room: Path) -> list[str]:
    """Return what a command must be given, all of it there."""
    (room / "folder").mkdir(exist_ok=True)
    (room / "file").touch()
    words: list[str] = []
    for one in command.params:
        if one.required:
            about = one.type_descriptor
            place = room / ("file" if not about.parameter_info.dir_okay else "folder")
            value = str(place)
            if issubclass(about.annotation, Enum):
                value = str(next(iter(about.annotation)).value)
            words += [value] if one.param_type_name == "argument" else [one.opts[0], value]
    return words


def said(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return a command's exit code, and its last lines on standard error."""
    with pytest.raises(SystemExit) as end:
        COMMAND(list(words), prog_name="triskel")
    out = capsys.readouterr()
    assert "Traceback" not in out.out + out.err
    return int(end.value.code or 0), out.err


def log_of(sentence: str) -> str:
    """Return what the log holds that a sentence names; nobody else may read it."""
    place = Path(re.search(r"; the traceback is in (\S+)$", sentence)[1])  # type: ignore[index]
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    return place.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "4000")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in cli.QUIET:
        monkeypatch.setenv(name, os.environ.get(name, ""))


@pytest.mark.parametrize("name", EVERY, ids=" ".join)
def test_no_command_lets_an_exception_through(
    name: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*name, *needed(EVERY[name], tmp_path)]
    for error in SURPRISES:

        def broken(error: BaseException = error, **_: Any) -> None:
            raise error

        monkeypatch.setattr(EVERY[name], "callback", broken)
        code, err = said(words, capsys)
        assert code == 1
        assert err.count("\n") == 1
        first = next((line.rstrip(".") for line in str(error).splitlines()), "no message")
        assert err.startswith(f"error: {type(error).__name__}: {first}; the traceback is in ")
        log = log_of(err.strip())
        assert f"{type(error).__name__}" in log
        assert "Traceback (most recent call last):" in log
        assert ", in broken\n" in log


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(3)])
def test_who_stops_a_command_leaves_no_log(
    stop: BaseException,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(**_: Any) -> None:
        raise stop

    monkeypatch.setattr(EVERY["runs",], "callback", broken)
    code, err = said(["runs"], capsys)
    assert (code, err) == (
        (130, "interrupted\n") if isinstance(stop, KeyboardInterrupt) else (3, "")
    )
    assert not list(tmp_path.glob("*.log"))


# --- every place of a run ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, texts, a job file, and a run of it."""
    room = tmp_path_factory.mktemp("room")
    small.save_model(room / "model")
    small.save_rows(room / "rows.csv", 48)
    lines = [
        "rounds = 1", "[model]", 'path = "model"', 'dtype = "float32"', "[data]", 'source = "csv"',
        'train = "rows.csv"', 'text = "text"', 'label = "label"', "validation_share = 0.2",
        "[clients]", "count = 2", "[train]", "batch = 4", "max_tokens = 12", "[logits]",
        "public = 4", "[adapter]", "rank = 2",
    ]  # fmt: skip
    (room / "job.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    got = RUNNER.invoke(cli.app, ["run", str(room / "job.toml"), "--out", str(room / "run")])
    assert got.exit_code == 0, got.stderr
    return room


PLACES: dict[str, tuple[Any, str, tuple[str, ...], str]] = {
    "reading rows": (resources, "federate", ("run", "evaluate"), "while reading the data"),
    "loading a tokenizer": (transformers.AutoTokenizer, "from_pretrained", ("run", "evaluate"),
        "while loading the tokenizer of {room}/model"),
    "loading a configuration": (transformers.AutoConfig, "from_pretrained", ("compare",),
        "while loading model {room}/model"),
    "loading weights": (transformers.AutoModelForSequenceClassification, "from_pretrained",
        ("run", "sweep"), "while loading model {room}/model"),
    "putting an adapter in": (peft, "inject_adapter_in_model", ("run",), ""),
    "making tokens": (batches, "within", ("run", "evaluate"), "while making tokens of texts"),
    "a training step": (torch.optim.AdamW, "step", ("run", "compare", "sweep"),
        "in the work of client-01 and 1 more, in round 1 of params"),
    "scoring": (SharedModel, "logits_by_part", ("run", "evaluate"), "while scoring texts, "),
    "writing a checkpoint": (checkpoint, "save_file", ("run",),
        "while writing a checkpoint, in round 1 of params"),
    "writing what texts reached": (records, "write_bytes", ("run",), "in params"),
    "writing an adapter": (adapters.peft_folder, "save_file", ("run",),
        "while writing an adapter, in params"),
    "writing the result": (folder, "dump", ("run", "compare"), "while writing the result"),
    "working out figures": (summary, "amounts", ("run",), ""),
    "writing the report": (page, "render", ("run", "report"), "while writing the report"),
    "looking at files": (Path, "iterdir", ("check",), ""),
    "exporting": (adapters, "adapter_copied", ("export",), "while exporting an adapter"),
    "merging": (adapters.peft_folder.peft.PeftModel, "from_pretrained", ("export --merge",),
        "while exporting an adapter"),
    "holding data": (compare, "same_data", ("run",), ""),
}  # fmt: skip
WORDS = {
    "run": ["run", "{room}/job.toml", "--out", "{here}/out"],
    "compare": ["compare", "{room}/job.toml", "--modes", "params", "--baselines", "none",
                "--out", "{here}/out"],
    "sweep": ["sweep", "{room}/job.toml", "--set", "train.lr=0.1,0.2", "--modes", "params",
              "--out", "{here}/out"],
    "check": ["check", "{room}/job.toml"],
    "evaluate": ["evaluate", "{room}/run"],
    "report": ["report", "{room}/run"],
    "export": ["export", "{room}/run", "{here}/adapter"],
    "export --merge": ["export", "{room}/run", "{here}/model", "--merge"],
}  # fmt: skip
WALKED = [(what, command) for what, place in PLACES.items() for command in place[2]]


@pytest.mark.parametrize(("what", "command"), WALKED)
def test_a_library_that_fails_somewhere_is_one_sentence_that_says_where(
    what: str, command: str, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, _, place = PLACES[what]

    def broken(*_: Any, **__: Any) -> Any:
        raise PanicException(f"a bug, by {TOKEN}\nand more")

    monkeypatch.setattr(owner, name, broken)
    words = [word.format(room=done, here=tmp_path) for word in WORDS[command]]
    got = RUNNER.invoke(cli.app, words)
    assert got.exit_code == 1
    assert "Traceback" not in got.output
    (line,) = [one for one in got.stderr.splitlines() if one.startswith("error: ")]
    assert line.startswith("error: PanicException: a bug, by ***")
    assert place.format(room=done) in line
    log = log_of(line)
    assert "PanicException: a bug, by ***\nand more" in log
    assert ", in broken\n" in log
    assert TOKEN not in log + got.output
    goes_on = "--resume" in got.stderr
    assert goes_on == ((tmp_path / "out" / "stages").exists() or command == "sweep"), got.stderr
    if (tmp_path / "out").exists() and "the data" not in place:
        assert (tmp_path / "out" / crash.NAME).exists()


def test_a_run_that_a_surprise_ended_goes_on(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise MemoryError

    words = [word.format(room=done, here=tmp_path) for word in WORDS["run"]]
    with monkeypatch.context() as once:
        once.setattr(page, "render", broken)
        assert RUNNER.invoke(cli.app, words).exit_code == 1
    assert RUNNER.invoke(cli.app, ["run", "--resume", str(tmp_path / "out")]).exit_code == 0
    assert (tmp_path / "out" / "report.html").exists()


# --- the log ----------------------------------------------------------------------------------


def test_a_log_lies_in_a_folder_that_holds_something_and_else_in_the_temporary_one(
    tmp_path: Path,
) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    for one in (empty, full):
        one.mkdir()
    (full / "job.toml").touch()
    found: list[Path] = []
    for place in (empty, full, full, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="x") as error, crash.logs_in(place):
            raise ValueError("x")
        found.append(crash.log(error.value))
    assert [place.parent for place in found] == [tmp_path, full, full, tmp_path]
    assert not any(empty.iterdir())
    assert (full / crash.NAME).read_text().count("ValueError: x") == 2


def test_a_log_that_cannot_be_written_into_its_folder_lies_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "full" / crash.NAME).mkdir(parents=True)  # in the way, whoever writes
    with pytest.raises(ValueError, match="x") as error, crash.logs_in(tmp_path / "full"):
        raise ValueError("x")
    assert crash.log(error.value).parent == tmp_path


def test_a_log_that_can_be_written_nowhere_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(EVERY["runs",], "callback", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    code, err = said(["runs"], capsys)
    assert code == 1
    assert err == (
        "error: MemoryError: no message; its log cannot be written (No such file or directory): "
        "run again with --debug for a traceback\n"
    )


def test_what_is_expected_gets_no_note_of_a_place() -> None:
    for error in (DataError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, crash.during("while it rains"):
            raise error
        assert not getattr(caught.value, "__notes__", ())


def test_places_are_told_from_the_inside_out_once_each_and_advice_apart() -> None:
    caught = ValueError(f"x.{'z' * crash.MOST}.")
    caught.add_note("do this")

    @crash.during("b")
    @crash.during("a")
    @crash.during("a")
    @crash.logs_in(Path("y"))
    def broken() -> None:
        raise caught

    with pytest.raises(ValueError, match="x"):
        broken()
    assert crash.told(caught) == f"ValueError: x.{'z' * (crash.MOST - 2)}..., a, b"
    assert crash.advice(caught) == ["do this"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Authorization: Bearer {TOKEN}", "Authorization: Bearer ***"),
        ("https://ann:pass@hub.example/x", "https://***@hub.example/x"),
        ("?a=1&token=abc&b=2", "?a=1&token=***&b=2"),
        ("X-Amz-Signature=abc&b=2", "X-Amz-Signature=***&b=2"),
        ("it was s3cr3t-value here", "it was *** here"),
        ("a short one stays: abc", "a short one stays: abc"),
        ("ann@example.org and a b c", "ann@example.org and a b c"),
    ],
)
def test_tokens_and_passwords_are_kept_out(
    text: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "s3cr3t-value")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    assert crash.masked(text) == shown
