"""Every input of the table through `triskel check`: read as meant, or refused in a sentence."""

# ruff: noqa: ANN401 - values of a job

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from triskel import cli
from triskel.config.read import load
from triskel.data.rows import Rows, join
from triskel.data.sources import read

HERE = Path(__file__).parent
FILES = HERE / "files"
cases = runpy.run_path(str(HERE.parent / "helpers" / "cases.py"))["cases"]
patience = runpy.run_path(str(HERE.parent / "helpers" / "patience.py"))["patience"]
small = SimpleNamespace(**runpy.run_path(str(HERE.parent / "helpers" / "small.py")))
INPUTS = runpy.run_path(str(HERE / "table.py"))["INPUTS"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.save_model(tmp_path_factory.mktemp("model") / "model")


def placed(value: Any) -> Any:
    """Return a value with the folder of the files filled in."""
    return value.replace("{files}", str(FILES)) if isinstance(value, str) else value


def job_of(one: Any, model: Path) -> bytes:
    """Return the job file of an input: as it is given, or with one client and no public set."""
    if one.toml:
        text = one.toml
        if isinstance(text, bytes):
            return text
        return text.replace("{files}", str(FILES)).replace("{model}", str(model)).encode()
    data = {key: placed(value) for key, value in one.data.items()}
    if one.file:
        data["train"] = str(FILES / one.file)
    job: dict[str, Any] = {
        "model": {"path": placed(one.model) or str(model)},
        "data": {"source": one.source, **data},
        "clients": {} if one.source == "clients" else {"count": 1},
        "train": {"max_tokens": 48},
    }
    if "public_count" not in data:
        job["logits"] = {"public": 0}
    for key, value in one.job.items():
        section, name = key.split(".")
        job.setdefault(section, {})[name] = value
    return tomli_w.dumps(job).encode()


def rows_of(job: Path) -> Iterator[tuple[str, str]]:
    """Return all rows that a job reads, as text and label, or prompt and response."""
    table = read(load(job))
    rows: Rows = join([table.train, table.test])
    texts = rows.text or rows.prompt
    yield from zip(texts, rows.label or rows.response or ("",) * len(texts), strict=True)


@pytest.mark.parametrize("number", range(len(INPUTS)))
def test_an_input_is_read_as_meant_or_refused_in_a_sentence(
    number: int, model: Path, tmp_path: Path
) -> None:
    one = INPUTS[number]
    job = tmp_path / "job.toml"
    job.write_bytes(job_of(one, model))
    said = CliRunner().invoke(cli.app, ["check", str(job)])
    text = said.stdout
    assert not said.stderr, one
    assert "Traceback" not in text
    refused = isinstance(one.meant, str) and bool(one.meant)
    lines = [line for line in text.splitlines() if line.startswith("refused ")]
    if refused:
        assert said.exit_code == 2, (one, text)
        assert any(re.search(one.meant, line) for line in lines), (one, text)
        assert all(len(line) < 1000 for line in lines), text  # one sentence, not a file
        return
    assert said.exit_code == 0, (one, said.exception, text)
    assert not lines
    if one.odd:
        assert re.search(rf"^odd .*{one.odd}", text, re.MULTILINE), (one, text)
    if one.meant:
        assert sorted(rows_of(job)) == sorted(one.meant), one


@pytest.mark.parametrize("first", range(0, cases(5_000), 5_000))
def test_tables_written_and_damaged_in_many_ways_are_read_as_meant_or_refused_by_name(
    first: int,
) -> None:
    """A process of its own, whose memory is its own, and which a fault of a library would end."""
    ran = subprocess.run(
        [sys.executable, str(HERE / "damage.py"), str(first), "5000"],
        capture_output=True, text=True, timeout=patience(600), check=True,
    )  # fmt: skip
    *wrong, last = map(json.loads, ran.stdout.splitlines())
    assert not wrong
    assert sum(last["seen"].values()) == 5_000
    assert last["seen"]["written, read"] > 900  # a fifth, but what nobody can tell
    assert last["seen"]["bytes, refused"] > 1_000
    assert last["seen"]["types, refused"] == last["seen"]["columns, refused"] == 1_000
    assert last["grown"] < 200 << 20
    assert not ran.stderr


def test_the_table_is_long_and_uses_every_file() -> None:
    named = {part for one in INPUTS for part in str(vars(one)).split("'") if part}
    used = " ".join(named)
    there = [*FILES.iterdir(), *(FILES / "models").iterdir()]
    left = [place.name for place in there if place.name not in used]
    assert len(INPUTS) >= 150
    assert not left
