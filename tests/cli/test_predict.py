"""What a run trained, applied by the command line: tables, lines, and a conversation."""

import csv
import json
import os
import pty
import runpy
import select
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers
from typer.testing import CliRunner

import triskel as api
from triskel import cli
from triskel.cli import predict
from triskel.cli.output import console_for
from triskel.data.files import load
from triskel.engines.local import LocalEngine
from triskel.experiment.chat import Chat
from triskel.experiment.compare import Request, run
from triskel.experiment.predict import Predictor
from triskel.experiment.trained import trained
from triskel.model.generate import Sampling

HELPERS = Path(__file__).parents[1] / "helpers"
small = SimpleNamespace(**runpy.run_path(str(HELPERS / "small.py")))
patience = runpy.run_path(str(HELPERS / "patience.py"))["patience"]
TURNS = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} </s>{% endfor %}"
SHORT = ("--max-new-tokens", "4")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of classes and two that write, one of them in a chat."""
    folder = tmp_path_factory.mktemp("room")
    model = small.save_model(folder / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TURNS
    tokenizer.save_pretrained(model)
    rows = small.save_rows(folder / "rows.csv", 40)
    plain = small.job(model, rows, train={"lr": 0.05})
    texts = small.job(model, rows, task="causal")
    chat = small.job(model, rows, task="causal", data={"template": "chat"})
    for name, job, modes in (
        ("classes", plain, ("params", "split")),
        ("texts", texts, ("params",)),
        ("chat", chat, ("params",)),
    ):
        run(job, Request(modes=modes, baselines=()), folder / name, LocalEngine(job), small.watch)
    return folder


@pytest.fixture
def here(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder beside the runs."""
    for name in cli.QUIET:
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.delenv("COLUMNS", raising=False)  # test workers set it
    for name in ("classes", "texts", "chat"):
        (tmp_path / name).symlink_to(room / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def triskel(*words: str, lines: str | bytes = "") -> tuple[int, str, str]:
    got = CliRunner().invoke(cli.app, list(words), input=lines)
    return got.exit_code, got.stdout, got.stderr


def refused(*words: str, lines: str | bytes = "", code: int = 2) -> str:
    """What a refused command says last; nothing on standard output."""
    exit_code, out, said = triskel(*words, lines=lines)
    assert (exit_code, out) == (code, "")
    return said.splitlines()[-1]


def test_a_table_gets_the_class_and_every_probability_beside_its_own_columns(here: Path) -> None:
    rows = [{"id": i, "text": small.text(2 + i, i), "label": "?"} for i in range(4)]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, said = triskel(
        "predict", "classes", "in.jsonl", "--mode", "split", "--out", "new/out.csv"
    )
    assert (code, out) == (0, "new/out.csv\n"), said
    assert "split on 4 rows\n4 rows, 14 tokens read, " in said
    assert "rows/s)" in said
    wanted = api.Result(here / "classes").predict([row["text"] for row in rows], "split")
    with Path("new/out.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    for row, one, given in zip(found, wanted, rows, strict=True):
        assert [*row] == ["id", "text", "label", "prediction", "p_bad", "p_fair", "p_good"]
        assert (row["id"], row["text"]) == (str(given["id"]), given["text"])
        assert row["prediction"] == one.answer
        for name, share in one.probabilities.items():
            assert float(row[f"p_{name}"]) == pytest.approx(share, abs=1e-6)
    again = refused("predict", "classes", "in.jsonl", "--out", "new/out.csv")
    assert again == "error: new/out.csv exists; --force replaces a file"
    code, *_ = triskel("predict", "classes", "in.jsonl", "--out", "new/out.csv", "--force")
    assert code == 0
    taken = refused("predict", "classes", "new/out.csv", "--out", "x.csv")
    assert "data file new/out.csv has a column 'prediction', which is to be written" in taken
    assert not Path("x.csv").exists()


@pytest.mark.usefixtures("here")
def test_lines_of_standard_input_are_rows_and_shown(room: Path) -> None:
    code, out, said = triskel(
        "predict", "classes", "-", lines=b"\xef\xbb\xbfw1 w2\n\n" + b"w3 " * 30 + b"\r\n"
    )
    assert code == 0, said
    found = api.Result(room / "classes").predict(["w1 w2", "", "w3 " * 30])
    heading, *lines = out.splitlines()
    assert heading.split() == ["row", "class", "probabilities", "text"]
    for number, (line, one) in enumerate(zip(lines, found, strict=True), 1):
        ranked = sorted(one.probabilities.items(), key=lambda pair: -pair[1])
        assert line.split()[:4] == [str(number), one.answer, ranked[0][0], f"{ranked[0][1]:.3f},"]
    assert lines[0].rstrip().endswith("w1 w2")
    assert "params on 3 rows" in said
    assert "warning row 2 is empty, and answered like any other text" in said
    assert "warning row 3 is too long and cut: 18 of 33 tokens were not read" in said


@pytest.mark.usefixtures("here")
def test_answers_are_shown_in_order_and_one_alone_as_it_is_written(room: Path) -> None:
    lines = ["w1 w2 w3 w4", "w5", "", "w6 w7"]
    code, out, said = triskel("predict", "texts", "-", *SHORT, lines="\n".join(lines))
    assert code == 0, said
    wanted = [x.answer for x in api.Result(room / "texts").predict(lines, max_new_tokens=4)]
    shown = [f"--- row {n}\n{'–' if x is None else x}" for n, x in enumerate(wanted, 1)]
    assert sorted(out.rstrip("\n").split("\n--- ")[1:]) == sorted(
        x.removeprefix("--- ") for x in shown if not x.startswith("--- row 3")
    )
    assert "warning row 3 is without a token, and left without an answer" in said
    assert "new tokens/s)" in said
    code, out, _ = triskel("predict", "texts", "-", *SHORT, lines="w5")
    assert (code, out) == (0, f"{wanted[1]}\n")
    drawn = [
        triskel("predict", "texts", "-", *SHORT, *more, lines="w5")[1]
        for more in (["--temperature", "2", "--seed", "1"], ["--temperature", "2", "--seed", "1"],
                     ["--temperature", "2", "--seed", "2"])
    ]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("classes", "no.csv"), "data file no.csv does not exist"),
        (("classes", "empty.csv"), "data file empty.csv holds no rows"),
        (("classes", "other.csv"), "data file other.csv has no column 'text'; did you mean 'txt'?"),
        (("classes", "null.jsonl"), "without a value in column 'text', the first is row 2"),
        (
            ("classes", "good.csv", "--mode", "parms"),
            "has no adapter of mode parms; it has params,",
        ),
        (("classes", "good.csv", "--client", "ann"), "no adapter of client ann; it has params, sp"),
        (("classes", "good.csv", "--seed", "3"), "tells classes and writes nothing; leave out max"),
        (("texts", "good.csv", "--top-p", "0.5"), "top_p is not read at temperature 0"),
        (("texts", "good.csv", "--max-new-tokens", "128"), "reads and writes 128 tokens together"),
        (("classes", "good.csv", "--out", "x.txt"), "x.txt has no known format; name it .csv,"),
        (("classes", "-"), "standard input holds no rows"),
        (("begun", "good.csv"), "run begun has no adapter; it has none yet"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_cannot_be_is_said_in_a_sentence(
    words: tuple[str, ...], said: str, room: Path
) -> None:
    Path("empty.csv").write_text("text\n")
    Path("other.csv").write_text("txt\nw1\n")
    Path("good.csv").write_text("text\nw1\n")
    Path("null.jsonl").write_text('{"text": "w1"}\n{"text": null}\n')
    Path("begun").mkdir()
    for name in ("job.toml", "request.json"):
        shutil.copy(room / "classes" / name, "begun")
    assert said in refused("predict", *words)
    assert not list(Path().glob("x.*"))


@pytest.mark.usefixtures("here")
def test_a_run_that_is_not_there_and_bytes_that_are_no_text_are_refused() -> None:
    code, out, said = triskel("predict", "nowhere", "-")
    assert (code, out) == (2, "")
    assert "'nowhere' does not exist" in said
    assert "standard input is not UTF-8 text (byte 1)" in refused(
        "predict", "classes", "-", lines=b"a\xff"
    )
    assert "not UTF-8" in refused("chat", "chat", *SHORT, lines=b"a\xff\n")
    Path("file").write_text("")
    Path("good.csv").write_text("text\nw1\n")
    Path("none").mkdir()
    assert "none is not a run folder" in refused("predict", "none", "good.csv", code=1)
    assert "file/x.csv cannot be written" in refused(
        "predict", "classes", "good.csv", "--out", "file/x.csv", code=1
    )


def test_what_is_wrong_with_files_is_said_before_torch_is_loaded(here: Path) -> None:
    (here / "x.csv").write_text("text\n")
    script = (
        "import sys; from triskel.cli import app\n"
        "for words in (['classes', 'x.csv'], ['classes', '-', '--out', 'x.csv'], ['-h']):\n"
        "    try: app(['predict', *words])\n"
        "    except SystemExit as end: print(end.code)\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=here
    )
    lines = [line for line in done.stdout.splitlines() if line in {"0", "2"} or "[" in line[:1]]
    assert lines == ["2", "2", "0", "[]"]


# --- chat -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_a_script_talks_until_it_ends(room: Path) -> None:
    code, out, said = triskel("chat", "texts", *SHORT, lines="w1\n\nw2 w3\n/reset\n/exit\nw3\n")
    assert code == 0, said
    wanted = api.Result(room / "texts").predict(["w1", "w2 w3"], max_new_tokens=4)
    assert out.splitlines() == [one.answer for one in wanted]
    assert triskel("chat", "texts", *SHORT)[:2] == (0, "")


@pytest.mark.usefixtures("here")
def test_what_a_talk_loses_is_said_and_what_was_reset_is_not_there_to_lose() -> None:
    first, second, third = (" ".join([f"w{i}"] * n) for i, n in ((1, 60), (2, 60), (3, 200)))
    code, _, said = triskel("chat", "chat", *SHORT, lines=f"{first}\n{second}\n{third}\n")
    assert code == 0
    assert said == (
        "the talk is longer than the model: its oldest turn is forgotten\n"
        "the talk is longer than the model: its oldest turn is forgotten\n"
        "the line is longer than the model: its first 79 tokens are not read\n"
    )
    assert triskel("chat", "chat", *SHORT, lines=f"{first}\n/reset\n{second}")[2] == ""


@pytest.mark.usefixtures("here")
def test_classes_do_not_talk() -> None:
    assert refused("chat", "classes", lines="w1\n") == (
        "error: classes tells classes and writes no text; `triskel predict classes -` tells the "
        "class of each line"
    )


class Terminal:
    """The command line on a terminal, and whoever sits at it."""

    def __init__(self, *words: str, cwd: Path) -> None:
        self.main, side = pty.openpty()
        code = "from triskel.cli import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *words], cwd=cwd, stdin=side, stdout=side,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        os.close(side)
        self.shown = ""

    def until(self, text: str) -> str:
        """Return what is shown till a text is, and forget it."""
        while text not in self.shown:
            ready, _, _ = select.select([self.main], [], [], patience(60))
            assert ready, f"nothing more after {self.shown!r}"
            self.shown += os.read(self.main, 65536).decode()
        before, _, self.shown = self.shown.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.main, text.encode())

    def end(self) -> tuple[int, str]:
        """Return the exit code, and what was said on standard error."""
        try:
            said = self.process.communicate(timeout=patience(60))[1].decode()
        finally:
            self.process.kill()
            os.close(self.main)
        return self.process.returncode, said


def test_on_a_terminal_lines_are_answered_until_it_ends(here: Path) -> None:
    seat = Terminal("chat", "texts", *SHORT, cwd=here)
    try:
        seat.until("> ")
        seat.type("w1\n")
        answer = seat.until("\r\n> ").splitlines()[-1]
        seat.type("\x04")
    finally:
        code, said = seat.end()
    assert code == 0, said
    assert "each line stands alone; /reset forgets, /exit or Ctrl-D ends, Ctrl-C stops an" in said
    assert triskel("chat", "texts", *SHORT, lines="w1")[1] == f"{answer}\n"


def test_an_answer_that_is_stopped_was_not_given(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained(here / "chat", watch=small.watch)
    talk = Chat(Predictor(model, sampling=Sampling(max_new_tokens=4)))
    talk.answer("w1")
    before, pieces = list(talk.turns), list[str]()

    def stopping(text: str) -> None:
        pieces.append(text)
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "_piece", stopping)
    predict._reply(console_for(), talk, "w2", terminal=True)
    assert talk.turns == before
    assert len(pieces) == 1
    assert "stopped; what was asked is forgotten" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        predict._reply(console_for(), talk, "w2", terminal=False)


def test_a_loader_reads_what_is_written_for_a_table_of_answers(here: Path) -> None:
    (here / "in.csv").write_text("text,n\nw1 w2,1\nw3,2\n")
    code, _, said = triskel("predict", "texts", "in.csv", "--out", "out.parquet", *SHORT)
    assert code == 0, said
    found = load(here / "out.parquet")
    wanted = api.Result(here / "texts").predict(["w1 w2", "w3"], max_new_tokens=4)
    assert found == {
        "text": ["w1 w2", "w3"], "n": ["1", "2"], "prediction": [one.answer for one in wanted],
    }  # fmt: skip
