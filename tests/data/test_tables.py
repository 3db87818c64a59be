"""A table that is written is the table that is read, and there is never half of one."""

import datetime as dt
import json
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from triskel.data.files import load
from triskel.data.tables import WRITERS, writable, write_table
from triskel.errors import CheckpointError, DataError, JobError

TABLE: dict[str, list[Any]] = {
    "text": ["a, b", 'say "x"\nand y', "", "ä 🙂"],
    "prediction": ["good", None, "bad", "good"],
    "p_good": [0.25, None, 0.1, 1e-9],
}


@pytest.mark.parametrize("suffix", sorted(WRITERS))
def test_a_table_is_read_as_it_was_written(suffix: str, tmp_path: Path) -> None:
    place = tmp_path / "new" / f"table{suffix}"
    writable(place, force=False)
    assert list(place.parent.iterdir()) == []
    write_table(place, TABLE)
    found = {name: list(values) for name, values in load(place).items()}
    as_text = {n: ["" if v is None else str(v) for v in values] for n, values in TABLE.items()}
    assert found == (as_text if suffix == ".csv" else TABLE)
    assert place.stat().st_mode & 0o077 == 0
    assert list(place.parent.iterdir()) == [place]


def test_json_has_no_number_that_is_none_and_other_values_as_text(tmp_path: Path) -> None:
    day = dt.date(2024, 5, 1)
    write_table(tmp_path / "x.jsonl", {"a": [float("nan"), float("inf")], "b": [day, 1]})
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"a": None, "b": "2024-05-01"}, {"a": None, "b": 1},
    ]  # fmt: skip


def test_a_column_of_mixed_values_is_refused_as_parquet(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'a' cannot be Parquet: .*; write CSV or JSON"):
        write_table(tmp_path / "x.parquet", {"a": ["x", 1]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.txt", "x", "x.xlsx"])
def test_a_name_that_says_no_format_is_refused(name: str, tmp_path: Path) -> None:
    for refuse in (lambda p: writable(p, force=False), lambda p: write_table(p, TABLE)):
        with pytest.raises(JobError, match=r"no known format; name it \.csv, \.jsonl, \.parquet"):
            refuse(tmp_path / name)


def test_a_file_is_replaced_only_where_that_is_asked_for(tmp_path: Path) -> None:
    place = tmp_path / "x.csv"
    place.write_text("old")
    with pytest.raises(JobError, match=r"x\.csv exists; --force replaces a file"):
        writable(place, force=False)
    writable(place, force=True)
    assert place.read_text() == "old"
    (tmp_path / "y.csv").mkdir()
    with pytest.raises(JobError, match="exists"):
        writable(tmp_path / "y.csv", force=True)


def test_a_place_that_cannot_be_written_to_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"x\.csv cannot be written"):
        writable(tmp_path / "file" / "x.csv", force=False)


@pytest.fixture
def full() -> Iterator[None]:
    """A disk that has room for ten bytes a file."""
    kept = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, kept)


@pytest.mark.usefixtures("full")
def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path) -> None:
    place = tmp_path / "x.csv"
    place.write_text("old")
    with pytest.raises(CheckpointError, match=r"x\.csv cannot be written: .*File too large"):
        write_table(place, TABLE)
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]
