"""What others wrote steers no terminal, wherever it is printed."""

import json
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.live import Live as Display
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from triskel import cli
from triskel.cli.federation.nodes import sentence
from triskel.core.console import Plain, clean, echo
from triskel.report.terminal import Live

EVIL = "bank\r\x1b[2Kall is well\x9b2J\u202e\x07\x00"
STEERS = set("\r\x1b\x9b\u202e\x07\x00")


def test_what_is_cleaned_reads_on_and_steers_nothing() -> None:
    assert clean(EVIL) == "bank\\r\\x1b[2Kall is well\\x9b2J\\u202e\\x07\\x00"
    for word in ("", "Kraków, 東京 – fine", "two\nlines\twith a tab"):
        assert clean(word) == word


def printed(*things: Any) -> str:  # noqa: ANN401 - what rich renders
    out = StringIO()
    console = Plain(file=out, force_terminal=False, width=200, highlight=False)
    for one in things:
        console.print(one, markup=False)
    return out.getvalue()


def test_strings_texts_and_cells_are_printed_clean() -> None:
    table = Table(EVIL, title=EVIL, caption=EVIL)
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    found = printed(EVIL, Text(EVIL), table)
    assert not STEERS & set(found)
    assert found.count("all is we") >= 6


def test_a_console_still_steers_by_itself() -> None:
    out = StringIO()
    console = Plain(file=out, force_terminal=True, width=80)
    with Display(Text("one", style="bold"), console=console) as display:
        display.update(Text("two"), refresh=True)
    assert "\x1b[1m" in out.getvalue()
    assert "\x1b[2K" in out.getvalue()


def test_an_echo_is_clean(capsys: pytest.CaptureFixture[str]) -> None:
    echo(EVIL)
    echo(EVIL, err=True)
    found = capsys.readouterr()
    assert not STEERS & set(found.out + found.err)
    assert "all is well" in found.out
    assert "all is well" in found.err


def test_progress_of_a_client_with_such_a_name_is_clean() -> None:
    out = StringIO()
    with Live(Plain(file=out, force_terminal=False, width=200)) as live:
        live({"event": "note", "text": EVIL})
        live({"event": "warning", "text": EVIL})
    assert "all is well" in out.getvalue()
    assert not STEERS & set(out.getvalue())


def test_progress_is_clean_without_being_told_where_to_go(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Live() as live:
        live({"event": "warning", "text": EVIL})
    found = capsys.readouterr()
    assert "all is well" in found.err
    assert not STEERS & set(found.err)


def test_a_servers_log_is_clean_where_it_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    said = SimpleNamespace(meta=lambda _: {"status": "FINISHED"}, log=lambda _: f"one\n{EVIL}\n")
    kit = SimpleNamespace(job="1")
    monkeypatch.setattr("triskel.federation.kits.admin_in", lambda *_: kit)
    monkeypatch.setattr("triskel.federation.submissions.find", lambda *_: kit)
    monkeypatch.setattr("triskel.federation.session.opened", lambda _: nullcontext(said))
    got = CliRunner().invoke(cli.app, ["federation", "logs", "f"])
    assert got.exit_code == 0, got.output
    assert "all is well" in got.output
    assert not STEERS & set(got.output)


@pytest.mark.parametrize("what", ["job", "run", "policy", "log"])
def test_a_file_with_such_words_is_refused_on_its_line(what: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    words = {
        "job": ["run", str(file)],
        "policy": ["site", "check", str(file), str(file)],
        "log": ["site", "audit", str(file)],
        "run": ["report", str(tmp_path)],
    }[what]
    file.write_text(f"[{json.dumps(EVIL)}]\nx = 1\n", encoding="utf-8")
    (tmp_path / "result.json").write_text(json.dumps({"schema": EVIL}), encoding="utf-8")
    (tmp_path / "job.toml").write_bytes(file.read_bytes())
    got = CliRunner().invoke(cli.app, words)
    assert got.exit_code
    assert "error" in got.output
    assert not STEERS & set(got.output), got.output


@pytest.mark.parametrize("odd", [7, "x", [1], {"a": 1}, {"a": {"tokens": "many"}}, None])
@pytest.mark.parametrize("key", ["clients", "waiting_for", "metrics", "up_bytes", "round", "stage"])
def test_progress_of_any_shape_is_a_sentence(key: str, odd: object) -> None:
    assert isinstance(sentence({"stage": "params", key: odd}), str)


def test_what_a_server_says_of_a_job_is_clean_where_it_is_printed() -> None:
    assert not STEERS & set(printed(sentence({"stage": EVIL, "text": EVIL, "waiting_for": [EVIL]})))
